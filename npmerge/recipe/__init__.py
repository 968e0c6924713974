"""Recipes: what to merge, read and checked before any tensor is opened."""
