"""Measures linkers: counts correct links, sweeps thresholds, reports."""
