"""One module per vendor library; each imports its library at the top and is imported when it is opened."""
