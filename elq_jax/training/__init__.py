"""Trains linkers in stages: loop and hooks, step, negatives, checkpoints, configuration."""
