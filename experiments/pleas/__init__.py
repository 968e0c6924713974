"""PLeaS (Nasery et al. 2024, CVPR 2025, arXiv 2407.02447): merges of sizes between one network and two, and without data."""
