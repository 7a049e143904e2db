"""ESNet in PyTorch: the network, its checkpoints, label sets, data and metrics (arXiv 1906.09826)."""
