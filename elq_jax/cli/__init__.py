"""Code that all programs share: running, flags, configurations, the command elq-jax."""
