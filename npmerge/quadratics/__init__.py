"""Merges that minimise sums of quadratic forms: operators, systems, conjugate gradients."""
