"""Features of autoencoders followed through fine-tuning and merging (Horn and Elliott 2025, arXiv 2410.12391)."""
