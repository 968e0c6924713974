"""The `align:` and `learn:` blocks of recipes: from stored models to stored models, by way of networks that run."""
