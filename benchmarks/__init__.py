"""Measurements behind the numbers of the README; run as `python -m benchmarks.<name>`."""
