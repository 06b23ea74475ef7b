"""Memory of the denoising steps when every block reads X_e alone, beside Kiwi-Edit's way of computing them.

    python benchmarks/kiwi_memory.py

Counted are the bytes of all tensors that are alive beside the weights, at the peak of two steps of the 5B in
bf16, on the meta device: nothing is computed, and no GPU is needed. Kiwi-Edit's way is written out here on
diffusers' transformer, from the description of its pipeline: the source is embedded in each step, and keys
and values are computed in each block. rvedit keeps them for short clips only; see `reuse_pays` of the
transformer. 1 GB is 10^9 bytes.
"""

from __future__ import annotations

from typing import Any

import torch
from _common import arguments, print_table, write_json
from diffusers import WanTransformer3DModel
from torch import Tensor, nn

from rvedit.editing.peak_memory import peak_bytes
from rvedit.models.presets import WAN22_5B_TRANSFORMER
from rvedit.models.transformer import RoutedWanTransformer3DModel

CLIPS = {"81 x 704 x 1280": (21, 44, 80), "81 x 480 x 832": (21, 30, 52), "21 x 256 x 256": (6, 16, 16)}
"""Latent frames, height and width."""
STEPS = 2
DTYPE = torch.bfloat16


def empty(*shape: int, dtype: torch.dtype = DTYPE) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def cast(module: Any) -> Any:
    return nn.Module.to(module, DTYPE)


def our_bytes(grid: tuple[int, int, int], reuse: bool) -> int:
    """Return the peak of our steps, with or without keys and values that are kept between them."""
    config = {**WAN22_5B_TRANSFORMER, "routing_depth": WAN22_5B_TRANSFORMER["num_layers"]}
    with torch.device("meta"):
        model = cast(RoutedWanTransformer3DModel(**config))
    latents, edit_tokens = empty(1, 48, *grid), empty(1, 512, 3072)

    def steps() -> None:
        groups = model.embed_tokens(edit_tokens, latents)
        contexts = model.contexts(groups, reuse=True) if reuse else None
        for _ in range(STEPS):
            model(latents.clone(), empty(1, dtype=torch.float32), groups, contexts)

    return peak_bytes(steps)


def kiwi_bytes(grid: tuple[int, int, int]) -> int:
    """Return the peak of Kiwi-Edit's steps."""
    config = {
        key: value for key, value in WAN22_5B_TRANSFORMER.items() if "rout" not in key and "source" not in key
    }
    with torch.device("meta"):
        wan = cast(WanTransformer3DModel(**config))
        embedder = cast(nn.Conv3d(48, 3072, (1, 2, 2), (1, 2, 2)))
    latents, context = empty(1, 48, *grid), empty(1, 512, 3072)

    def step() -> None:
        source = embedder(latents)
        volume = wan.patch_embedding(latents.clone()) + source * 0.5
        rotary = wan.rope(latents)
        tokens = volume.flatten(2).transpose(1, 2).contiguous()
        time = wan.condition_embedder.time_embedder(empty(1, 256))
        modulation = wan.condition_embedder.time_proj(nn.functional.silu(time)).unflatten(1, (6, 3072))
        for block in wan.blocks:
            tokens = block(tokens, context, modulation, rotary)
        shift, scale = (wan.scale_shift_table + time[:, None]).chunk(2, dim=1)
        tokens = (wan.norm_out(tokens.float()) * (1 + scale) + shift).to(DTYPE)
        wan.proj_out(tokens)

    def steps() -> None:
        for _ in range(STEPS):
            step()

    return peak_bytes(steps)


def main() -> None:
    args = arguments(__doc__, chooses_device=False).parse_args()
    rows, result = [], {}
    for name, grid in CLIPS.items():
        theirs = kiwi_bytes(grid)
        ours, without = our_bytes(grid, reuse=True), our_bytes(grid, reuse=False)
        result[name] = {"kiwi": theirs, "ours": ours, "ours_without_reuse": without}
        rows.append([name, f"{theirs / 1e9:.3f} GB", f"{ours / theirs:.3f}", f"{without / theirs:.3f}"])
    print_table(["clip", "Kiwi-Edit's way", "ours", "ours, keys and values not kept"], rows)
    write_json(args, result)


if __name__ == "__main__":
    main()
