"""Frames: sources, conversion to and from model inputs, overlays, sinks, and the threaded pipeline."""
