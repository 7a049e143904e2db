"""Outputs of ``esnet-segment``: drawn frames as images, videos or a window, records, and the summary."""
