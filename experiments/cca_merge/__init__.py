"""CCA Merge (Horoi et al. 2024, ICML, arXiv 2407.05385) beside permutations, ZipIt and Procrustes: 2 to 20 networks."""
