"""The machine: CPU, NVIDIA GPUs, and the doctor that checks both."""
