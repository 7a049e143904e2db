"""Weights that come with the package; see README.md beside them."""
