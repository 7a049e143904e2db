"""Latency, throughput, camera and stage timings, and their statistics."""
