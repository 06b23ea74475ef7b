"""Training data: read published datasets, probe, mix, cache and caption their clips."""
