"""The routed video diffusion transformer and what conditions it."""
