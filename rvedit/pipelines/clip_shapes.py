"""Validation of clip shapes for training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rvedit.io.errors import UserError
from rvedit.io.records import ClipShape


def check_shapes(shapes: Sequence[ClipShape], models: Any, context_parallel: int = 1) -> None:
    """Raise UserError for a length other than 4k+1 frames or a size that is not a multiple of a patch.

    `models` has a VAE and a transformer, such as a pipeline. Its heads, and the tokens of a
    latent frame, must be multiples of `context_parallel`.
    """
    heads = models.transformer.config.num_attention_heads
    if heads % context_parallel:
        raise UserError(f"context_parallel is {context_parallel}: it must divide {heads} attention heads")
    vae, patch = models.vae.config, models.transformer.config.patch_size
    grid, group = vae.scale_factor_spatial * patch[1], vae.scale_factor_temporal
    for shape in shapes:
        if (shape.num_frames - 1) % group:
            raise UserError(f"{shape}: the VAE takes {group}k+1 frames, not {shape.num_frames}")
        if shape.height % grid or shape.width % grid:
            rows, columns = (max(grid, round(side / grid) * grid) for side in (shape.height, shape.width))
            raise UserError(f"{shape}: height and width must be multiples of {grid}: try {rows}x{columns}")
        tokens = shape.height * shape.width // grid**2
        if tokens % context_parallel:
            raise UserError(
                f"{shape}: context_parallel is {context_parallel}: it must divide the {tokens} tokens of a "
                "latent frame"
            )
