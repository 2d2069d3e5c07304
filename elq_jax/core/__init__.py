"""Holds what all other packages build on: errors, devices, registries and settings."""
