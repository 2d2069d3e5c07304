"""What the programs share: running one, flags, configurations, the command elq-jax."""
