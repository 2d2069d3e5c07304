"""The encoders, the span grid and the losses: pure functions of arrays."""
