"""Measurements of latency, throughput, camera and stages, and their statistics."""
