"""`npmerge demo`: the whole pipeline on scikit-learn's digits (digits, pipeline, page, command)."""
