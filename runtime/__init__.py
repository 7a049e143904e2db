"""Run an exported ESNet: frames in, class maps out. Needs neither torch nor onnx.

``esnet.Segmenter`` is the main class; ``esnet.open_backend`` and ``esnet.ModelCard`` are the layer below.
"""
