"""Step caches that diffusers' hooks keep: clean for every window, and told how many steps there are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import MagCacheConfig
from diffusers.hooks.mag_cache import nearest_interp


class MagCache(MagCacheConfig):
    """MagCache for any number of steps; its hooks ask it again at every step."""

    def __init__(self, ratios: Sequence[float], threshold: float):
        self.measured = torch.tensor(ratios)
        super().__init__(threshold, num_inference_steps=len(ratios), mag_ratios=self.measured)

    def begin(self, num_steps: int) -> None:
        """From now on there are as many steps."""
        self.num_inference_steps = num_steps
        self.mag_ratios = nearest_interp(self.measured, num_steps)


def reset_step_cache(transformer: Any, num_steps: int) -> None:
    """Forget what steps of another clip or window left, if steps are cached."""
    if not transformer.is_cache_enabled:
        return
    transformer._reset_stateful_cache()
    if isinstance(transformer._cache_config, MagCache):
        transformer._cache_config.begin(num_steps)
