"""Counting correct links, threshold sweeps and reports."""
