"""Pre-norm transformers rewritten so that their residual stream may be rotated."""
