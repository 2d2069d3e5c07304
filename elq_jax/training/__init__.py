"""Training in stages: the loop and its hooks, the step, negatives, checkpoints, configuration."""
