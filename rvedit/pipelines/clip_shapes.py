"""Shapes of clips that a model can be trained on."""

from __future__ import annotations

from collections.abc import Sequence

from rvedit.io.errors import UserError
from rvedit.io.records import ClipShape
from rvedit.pipelines.pipeline_rvedit import RVEDiTPipeline


def check_shapes(shapes: Sequence[ClipShape], pipeline: RVEDiTPipeline) -> None:
    """Raises UserError for clips of another length than 4k+1, or of a size that patches do not fill."""
    vae, patch = pipeline.vae.config, pipeline.transformer.config.patch_size
    grid, group = vae.scale_factor_spatial * patch[1], vae.scale_factor_temporal
    for shape in shapes:
        if (shape.num_frames - 1) % group:
            raise UserError(f"{shape}: the VAE takes {group}k+1 frames, not {shape.num_frames}")
        if shape.height % grid or shape.width % grid:
            rows, columns = (max(grid, round(side / grid) * grid) for side in (shape.height, shape.width))
            raise UserError(f"{shape}: height and width must be multiples of {grid}: try {rows}x{columns}")
