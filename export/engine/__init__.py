"""TensorRT engines: the builder adapter, the build with its checks, and the kernel list."""
