"""Reproducible measurements of speed and accuracy."""
