"""Files that carry a model: the ONNX artefact, the engine, and the model card in both."""
