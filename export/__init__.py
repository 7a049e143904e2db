"""Export of ESNet weights: ONNX graph rewriting, FP16 and INT8 conversion, TensorRT engines, verification."""
