"""Faster inference with diffusers' step caches, compilation and attention backends."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import torch
from diffusers import FirstBlockCacheConfig, TaylorSeerCacheConfig
from diffusers.models.attention_dispatch import AttentionBackendName
from torch import Tensor

from rvedit.io.errors import UserError, check_choice
from rvedit.io.frames import resize_frames
from rvedit.pipelines.pipeline_rvedit import RVEDiTPipeline
from rvedit.pipelines.step_cache import MagCache

Fast = Literal["first-block", "magcache", "taylorseer"]
FAST_MODES: tuple[Fast, ...] = get_args(Fast)


def check_fast(kind: str | None, baseline: str | None = None) -> None:
    """Raise UserError for an unknown mode, or for one that does not work with a baseline."""
    check_choice("`fast`", kind, FAST_MODES)
    if baseline and kind not in (None, "taylorseer"):
        # MagCache needs ratios measured with RVEDiTPipeline; first-block would add VACE's hints twice.
        raise UserError(f"`fast` {kind}: not supported by {baseline}: choose taylorseer")


def enable_step_cache(pipeline: Any, kind: Fast, threshold: float = 0.1) -> None:
    """Enable a step cache, which reuses results of earlier denoising steps.

    The blocks' residual is the last block's output minus the first block's input.
    first-block: if the first block's residual has changed by less than `threshold`, relative to itself, since
    the last step, the residual of the other blocks is reused.
    magcache: the ratio of the residual's magnitude between successive steps is measured once, on a small
    image; while the error accumulated since the last full step is less than `threshold`, the residual of that
    step is reused, at most three times in a row.
    taylorseer: attention and feed-forward are computed at every third step and extrapolated in between.
    """
    transformer = pipeline.transformer
    if not isinstance(pipeline, RVEDiTPipeline):
        check_fast(kind, type(pipeline).__name__)
    if kind == "first-block":
        transformer.enable_cache(FirstBlockCacheConfig(threshold=threshold))
    elif kind == "magcache":
        transformer.enable_cache(MagCache(magnitude_ratios(pipeline), threshold))
    else:
        factors_dtype = torch.float32 if transformer.dtype == torch.float32 else torch.bfloat16
        layers = [r"blocks\.\d+\.(attn1|attn2|ffn)"]  # diffusers' own patterns do not match Wan's layers
        transformer.enable_cache(
            TaylorSeerCacheConfig(3, 3, taylor_factors_dtype=factors_dtype, cache_identifiers=layers)
        )


def magnitude_ratios(pipeline: RVEDiTPipeline) -> list[float]:
    """Return, for each step, the ratio of the blocks' residual magnitude to that of the step before.

    The ratio, a mean over tokens, hardly depends on the clip: it is measured on one small, smooth image.
    """
    blocks = pipeline.transformer.blocks
    inputs: list[Tensor] = []
    magnitudes: list[Tensor] = []
    hooks = [
        blocks[0].register_forward_pre_hook(lambda _, args: inputs.append(args[0])),
        blocks[-1].register_forward_hook(
            lambda _, args, output: magnitudes.append((output - inputs.pop()).float().norm(dim=-1))
        ),
    ]
    side = round(pipeline.config.min_area**0.5)
    colors = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), np.uint8)
    image = resize_frames(colors, side, side)
    try:
        generator = torch.Generator().manual_seed(0)
        pipeline(image, "make it brighter", guidance_scale=1.0, generator=generator, output_type="latent")
    finally:
        for hook in hooks:
            hook.remove()
    later, earlier = torch.stack(magnitudes[1:]), torch.stack(magnitudes[:-1])
    return [1.0, *(later / earlier.clamp(min=1e-8)).flatten(1).mean(dim=1).tolist()]


def check_attention(name: str | None) -> None:
    """Raise UserError for an attention backend that diffusers does not have."""
    check_choice("`attention`", name, sorted(backend.value for backend in AttentionBackendName))


def choose_attention(pipeline: Any, name: str) -> None:
    """Set the attention backend by its name in diffusers: native, flash, sage, _native_cudnn, ..."""
    check_attention(name)
    try:
        pipeline.transformer.set_attention_backend(name)
    except (RuntimeError, ImportError, ValueError) as error:
        raise UserError(f"`attention` {name}: is not available: {str(error).splitlines()[0]}") from None
