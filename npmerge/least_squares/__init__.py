"""Weights of a merged network solved layer by layer, so that it computes what its parents do."""
