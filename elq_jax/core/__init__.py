"""Errors, devices, registries and settings: the base of all other packages."""
