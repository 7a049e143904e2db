"""TensorRT engines: the builder, the build with its checks, and the compiled kernels."""
