"""What trades a little fidelity for speed, by diffusers' own hooks: steps that reuse earlier ones' work."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from diffusers import FirstBlockCacheConfig, TaylorSeerCacheConfig
from diffusers.models.attention_dispatch import AttentionBackendName

from rvedit.errors import UserError

Fast = Literal["first-block", "taylorseer"]
FASTS: tuple[Fast, ...] = get_args(Fast)


def reuse_steps(pipeline: Any, kind: Fast, threshold: float = 0.08) -> None:
    """Skip parts of some steps.

    first-block: where the first block's output has hardly changed since the last step (by less than
    `threshold` of itself), the other blocks' change is taken from then. taylorseer: attention and
    feed-forward are computed at every third step and extrapolated between.
    """
    transformer = pipeline.transformer
    if kind == "first-block":
        transformer.enable_cache(FirstBlockCacheConfig(threshold=threshold))
    else:
        kept = torch.float32 if transformer.dtype == torch.float32 else torch.bfloat16
        layers = [r"blocks\.\d+\.(attn1|attn2|ffn)"]  # the library's own patterns do not know Wan's names
        transformer.enable_cache(
            TaylorSeerCacheConfig(3, 3, taylor_factors_dtype=kept, cache_identifiers=layers)
        )


def compile_blocks(pipeline: Any) -> None:
    """Compile the transformer's block once, for all of its places."""
    pipeline.transformer.compile_repeated_blocks(dynamic=None)


def choose_attention(pipeline: Any, name: str) -> None:
    """Set the attention kernels, by diffusers' names such as native, flash, sage or _native_cudnn."""
    known = sorted(backend.value for backend in AttentionBackendName)
    if name not in known:
        raise UserError(f"--attention {name}: choose one of {', '.join(known)}")
    try:
        pipeline.transformer.set_attention_backend(name)
    except (RuntimeError, ImportError, ValueError) as error:
        raise UserError(f"--attention {name}: cannot be used here: {str(error).splitlines()[0]}") from None
