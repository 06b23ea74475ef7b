"""Reset of diffusers' step caches for each window, and MagCache for any number of steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import MagCacheConfig

from rvedit import compat


class MagCache(MagCacheConfig):
    """MagCache config whose number of steps can change; its hooks read it at every step."""

    def __init__(self, ratios: Sequence[float], threshold: float):
        self.measured_ratios = torch.tensor(ratios)
        super().__init__(threshold, num_inference_steps=len(ratios), mag_ratios=self.measured_ratios)

    def set_num_steps(self, num_steps: int) -> None:
        """Set the number of denoising steps."""
        self.num_inference_steps = num_steps
        self.mag_ratios = compat.nearest_interp(self.measured_ratios, num_steps)


def reset_step_cache(transformer: Any, num_steps: int) -> None:
    """Clear the step cache of the previous clip or window, if one is enabled."""
    if not transformer.is_cache_enabled:
        return
    config = compat.clear_step_cache(transformer)
    if isinstance(config, MagCache):
        config.set_num_steps(num_steps)
