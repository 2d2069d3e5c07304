"""Measurements behind the figures in docs/; each is run as `python -m benchmarks.NAME`."""
