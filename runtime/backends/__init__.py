"""One file a vendor; each imports its library at the top and is imported only when it is opened."""
