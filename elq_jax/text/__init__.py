"""Turns text into tokens and padded arrays, and cuts windows from long texts."""
