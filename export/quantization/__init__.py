"""INT8: calibration, quantization, the check on every backend, and block sensitivity."""
