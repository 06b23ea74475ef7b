"""What trades a little fidelity for speed, by diffusers' own hooks: steps that reuse earlier ones' work."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import torch
from diffusers import FirstBlockCacheConfig, TaylorSeerCacheConfig
from diffusers.models.attention_dispatch import AttentionBackendName
from torch import Tensor

from rvedit.io.errors import UserError
from rvedit.io.frames import resize_frames
from rvedit.pipelines.pipeline_rvedit import RVEDiTPipeline
from rvedit.pipelines.step_cache import MagCache

Fast = Literal["first-block", "magcache", "taylorseer"]
FASTS: tuple[Fast, ...] = get_args(Fast)


def check_fast(kind: str | None, foreign: str = "") -> None:
    """Raises UserError for what is none of the above, or nothing for an editor of Table 1."""
    if kind is not None and kind not in FASTS:
        raise UserError(f"`fast` {kind}: choose one of {', '.join(FASTS)}")
    if foreign and kind != "taylorseer":
        # MagCache is measured by an edit; VACE would add its hints twice to what a step before left.
        raise UserError(f"`fast` {kind}: is for models that rvedit runs itself: choose taylorseer")


def reuse_steps(pipeline: Any, kind: Fast, threshold: float = 0.1) -> None:
    """Skip parts of some steps.

    first-block: where the first block's output has hardly changed since the last step (by less than
    `threshold` of itself), the other blocks' change is taken from then. magcache: how much the blocks' change
    grows or shrinks from step to step is measured once, on a small still; where what adds up since the last
    whole step is less than `threshold`, that step's change is taken, up to three times. taylorseer: attention
    and feed-forward are computed at every third step and extrapolated between.
    """
    transformer = pipeline.transformer
    if not isinstance(pipeline, RVEDiTPipeline):
        check_fast(kind, type(pipeline).__name__)
    if kind == "first-block":
        transformer.enable_cache(FirstBlockCacheConfig(threshold=threshold))
    elif kind == "magcache":
        transformer.enable_cache(MagCache(magnitude_ratios(pipeline), threshold))
    else:
        kept = torch.float32 if transformer.dtype == torch.float32 else torch.bfloat16
        layers = [r"blocks\.\d+\.(attn1|attn2|ffn)"]  # the library's own patterns do not know Wan's names
        transformer.enable_cache(
            TaylorSeerCacheConfig(3, 3, taylor_factors_dtype=kept, cache_identifiers=layers)
        )


def magnitude_ratios(pipeline: RVEDiTPipeline) -> list[float]:
    """Of each step: how much larger the blocks' change is than at the step before, mean over tokens.

    It depends on model and schedule, and little on the clip: one small still of smooth color is edited.
    """
    blocks = pipeline.transformer.blocks
    before: list[Tensor] = []
    lengths: list[Tensor] = []
    hooks = [
        blocks[0].register_forward_pre_hook(lambda _, args: before.append(args[0])),
        blocks[-1].register_forward_hook(
            lambda _, args, output: lengths.append((output - before.pop()).float().norm(dim=-1))
        ),
    ]
    side = round(pipeline.config.min_area**0.5)
    colors = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), np.uint8)
    still = resize_frames(colors, side, side)
    try:
        generator = torch.Generator().manual_seed(0)
        pipeline(still, "make it brighter", guidance_scale=1.0, generator=generator, output_type="latent")
    finally:
        for hook in hooks:
            hook.remove()
    later, earlier = torch.stack(lengths[1:]), torch.stack(lengths[:-1])
    return [1.0, *(later / earlier.clamp(min=1e-8)).flatten(1).mean(dim=1).tolist()]


def compile_blocks(pipeline: Any) -> None:
    """Compile the transformer's block once, for all of its places."""
    pipeline.transformer.compile_repeated_blocks(dynamic=None)


def check_attention(name: str | None) -> None:
    """Raises UserError for kernels that diffusers does not know."""
    known = sorted(backend.value for backend in AttentionBackendName)
    if name is not None and name not in known:
        raise UserError(f"`attention` {name}: choose one of {', '.join(known)}")


def choose_attention(pipeline: Any, name: str) -> None:
    """Set the attention kernels, by diffusers' names such as native, flash, sage or _native_cudnn."""
    check_attention(name)
    try:
        pipeline.transformer.set_attention_backend(name)
    except (RuntimeError, ImportError, ValueError) as error:
        raise UserError(f"`attention` {name}: cannot be used here: {str(error).splitlines()[0]}") from None
