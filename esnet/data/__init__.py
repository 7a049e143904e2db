"""Labelled images: datasets, augmentation, and generated scenes for demos and tests."""
