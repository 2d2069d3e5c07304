"""Converts and reproduces the original ELQ (github.com/facebookresearch/BLINK, folder elq).

The package reads and writes the original's files, and trains, decodes and counts as it does.
Only `convert` and the flag --preset import this package. Other packages find its parts by name,
such as "elq_jax.original.recipe:original", where a configuration or a file asks for them.
"""
