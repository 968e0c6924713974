"""Two experts of one language model, merged in weights, in features and by routers (Pari et al. 2024, arXiv 2411.02207)."""
