"""Reports on screen and in files, and the comparison of two of them."""
