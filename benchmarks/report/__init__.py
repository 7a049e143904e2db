"""Reports on the screen and in files, and the comparison of two reports."""
