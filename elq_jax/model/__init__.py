"""BERT, the span grid, the two encoders, and `Model`, which holds configuration and parameters."""
