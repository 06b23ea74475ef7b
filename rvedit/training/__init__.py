"""Training (Algorithm 1): the step, the loop, data, checkpoints and the dry run."""
