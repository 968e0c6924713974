"""Merging for compositional generalisation (Tam et al. 2024, arXiv 2409.18314): images, sentences and generation."""
