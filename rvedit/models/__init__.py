"""The routed video diffusion transformer, its conditioning and its VAE."""
