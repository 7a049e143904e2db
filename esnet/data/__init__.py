"""Images with labels: datasets, and generated scenes for demos and tests."""
