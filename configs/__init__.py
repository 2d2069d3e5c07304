"""Experiment records: one `get_config()` per file. Run from the root of the repository."""
