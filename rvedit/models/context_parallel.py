"""Context parallelism: several processes compute one clip, each the rows of S / N of its tokens.

diffusers exchanges queries, keys and values within self-attention (DeepSpeed-Ulysses). Everything else in a
block works on single rows, and so each process has its own rows of the transformer's input, of its output
and of the trace. Context tokens are whole on every process.

The gradients of a process are those of its own rows: their sum over the processes is the clip's gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.hooks.context_parallel import EquipartitionSharder
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from rvedit.compat import enable_ulysses, sequence_mesh


def share_clips(transformer: Any, mesh: DeviceMesh) -> None:
    """Let the processes of a mesh with dimensions `ring`, of size 1, and `ulysses` compute clips together.

    Users of diffusers can call `transformer.enable_parallelism` instead, for edits.
    """
    enable_ulysses(transformer, mesh)
    for block in transformer.blocks:
        for norm in (block.attn1.norm_q, block.attn1.norm_k):
            norm.register_forward_hook(_cast_as_values)


def _cast_as_values(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
    """Cast queries or keys to autocast's dtype, which the values have.

    Norms are fp32 under autocast, and diffusers computes the attention again in the backward pass, which is
    outside of autocast. They are thus rounded to bf16 once more than without context parallelism, before the
    rotary embedding.
    """
    device = output.device.type
    return output.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else output


def own_rows(transformer: nn.Module, rows: Float[Tensor, "b s ..."]) -> Float[Tensor, "b s_own ..."]:
    """Return this process's part of a sequence; the whole sequence without context parallelism.

    Raises ValueError if it cannot be divided.
    """
    mesh = sequence_mesh(transformer)
    if mesh is None:
        return rows
    if rows.shape[1] % mesh.size():
        raise ValueError(f"{rows.shape[1]} tokens cannot be divided among {mesh.size()} processes")
    return EquipartitionSharder.shard(rows, 1, mesh)


def all_rows(transformer: nn.Module, rows: Float[Tensor, "b s_own d"]) -> Float[Tensor, "b s d"]:
    """Return a sequence from the parts of all processes; its gradient goes to the process's own part."""
    mesh = sequence_mesh(transformer)
    return rows if mesh is None else EquipartitionSharder.unshard(rows, 1, mesh)
