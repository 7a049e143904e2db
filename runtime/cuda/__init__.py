"""CUDA behind one narrow interface: page-locked and device memory, streams, events, graphs, slots."""
