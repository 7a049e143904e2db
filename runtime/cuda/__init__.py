"""CUDA behind one interface: pinned and device memory, streams, events, graphs, and the slot ring."""
