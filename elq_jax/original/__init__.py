"""The original ELQ: its files, its training, decoding and evaluation.

Nothing else needs this package."""
