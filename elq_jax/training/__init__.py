"""Joint training, catalogue encoding, checkpoints and devices."""
