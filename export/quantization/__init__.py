"""INT8: calibration, quantization, the check on every installed backend, and block sensitivity."""
