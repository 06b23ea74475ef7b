"""Where triplets (source, instruction, target) come from."""
