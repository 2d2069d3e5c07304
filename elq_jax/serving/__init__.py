"""Linking as a service: HTTP, requests linked in batches, limits and metrics.

Packages of the extra [serve] are imported inside functions, so that this package can be imported
without them.
"""
