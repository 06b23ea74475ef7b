"""Algorithm 1: the step, the loop around it, and what survives an interruption."""
