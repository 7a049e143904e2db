"""From ESNet weights to a deployable artefact: ONNX graph rewriting, precision, verification."""
