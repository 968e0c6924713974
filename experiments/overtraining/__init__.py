"""Experts that are trained too long merge worse (arXiv 2506.14126): merged accuracy against steps of expert training."""
