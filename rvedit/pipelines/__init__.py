"""Diffusers pipelines: RVEDiT, the baselines of Table 1, loading and device placement."""
