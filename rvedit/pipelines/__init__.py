"""Pipelines as diffusers users know them: RVEDiT, the baselines of Table 1, loading and placement."""
