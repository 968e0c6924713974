"""NP Merge (Orozco Camacho et al. 2024, arXiv 2412.15467) beside honest controls: starts, splits, labels, models, Fisher."""
