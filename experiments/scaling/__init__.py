"""Merging many networks, 2 to 64: accuracy, time and memory of every way against their number."""
