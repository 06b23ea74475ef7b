"""The processes of a run, on one machine or several: DDP and FSDP2.

accelerate reads the environment of `torchrun` or `accelerate launch` and wraps the model for DDP. FSDP2 is
torch's `fully_shard`, called here directly, since accelerate does not support it on CPUs, where it is tested.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any, Literal

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs
from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from torch import Tensor, nn
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from rvedit.io.errors import UserError
from rvedit.models.cross_attention import block_trace

SHARDED_LAYERS = (
    *("WanTransformerBlock", "UMT5Block"),
    *("Qwen2_5_VLDecoderLayer", "Qwen2_5_VLVisionBlock"),
)
"""Layer classes that FSDP2 shards, and gathers one at a time."""


class Processes:
    """This process's rank and device, and collective operations, which do nothing in a single process."""

    def __init__(self, strategy: Literal["ddp", "fsdp2"] = "ddp", device: str | None = None):
        self.strategy = strategy
        self.accelerator = Accelerator(cpu=device == "cpu")
        self.device = self.accelerator.device if device is None else torch.device(device)
        if self.count > 1:
            self.device = self.accelerator.device

    @property
    def count(self) -> int:
        """Return the number of processes."""
        return int(self.accelerator.num_processes)

    @property
    def rank(self) -> int:
        """Return the rank of this process, from 0."""
        return int(self.accelerator.process_index)

    @property
    def is_main(self) -> bool:
        """Return whether this process writes files."""
        return self.rank == 0

    def wrap(self, objective: nn.Module) -> nn.Module:
        """Return the model on the device, wrapped for DDP or FSDP2; `objective` keeps its parameter names."""
        objective.to(self.device)
        if self.strategy == "fsdp2":
            return self._shard(objective)
        if self.count == 1:
            return objective
        # Otherwise DDP would wait for gradients of parameters that the step does not use.
        idle = bool(getattr(objective, "has_idle_parts", False))
        self.accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=idle)
        wrapped: nn.Module = self.accelerator.prepare_model(objective)
        return wrapped

    def _shard(self, objective: nn.Module) -> nn.Module:
        """Shard each layer, and the rest as one unit. Shards are fp32, autocast computes in bf16.

        Inputs are not cast: in bf16 the timestep 501.3 would be 502.
        """
        policy = MixedPrecisionPolicy(cast_forward_inputs=False)
        if not dist.is_initialized():
            raise UserError("parallel: fsdp2 needs the processes of torchrun or `accelerate launch`")
        for module in list(objective.modules()):
            if type(module).__name__ not in SHARDED_LAYERS:
                continue
            fully_shard(module, mp_policy=policy)
            if isinstance(module, WanTransformerBlock):
                module.trace = MethodType(block_trace, module)
                register_fsdp_forward_method(module, "trace")
        fully_shard(objective, mp_policy=policy)
        if hasattr(objective, "edit"):
            register_fsdp_forward_method(objective, "edit")
        return objective

    @contextmanager
    def gradient_sync(self, model: nn.Module, synchronize: bool) -> Iterator[None]:
        """Average gradients over the processes, in a backward pass in this context, only if `synchronize`."""
        if isinstance(model, FSDPModule):
            model.set_requires_gradient_sync(synchronize)
            yield
        elif isinstance(model, nn.parallel.DistributedDataParallel) and not synchronize:
            with model.no_sync():
                yield
        else:
            yield

    def mean(self, scalars: Mapping[str, float]) -> dict[str, float]:
        """Return the mean of each scalar over the processes."""
        if self.count == 1:
            return dict(scalars)
        values = torch.tensor(list(scalars.values()), dtype=torch.float64, device=self.device)
        dist.all_reduce(values)
        return dict(zip(scalars, (values / self.count).tolist(), strict=True))

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over the processes; all of them must have the same shapes."""
        if self.count > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)
                tensor.div_(self.count)

    def squared_norms(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return the squared L2 norm of each tensor; those of shards are summed over the processes."""
        local = [x.to_local() if isinstance(x, DTensor) else x for x in tensors]
        squares = torch.stack([torch.linalg.vector_norm(x).double().square() for x in local])
        if any(isinstance(x, DTensor) for x in tensors):
            dist.all_reduce(squares)
        return squares

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process."""
        return self.mean({"flag": float(flag)})["flag"] > 0

    def union(self, entries: Mapping[str, str]) -> dict[str, str]:
        """Return the entries of all processes."""
        if self.count == 1 or not self.any(bool(entries)):
            return dict(entries)
        gathered: list[Any] = [None] * self.count
        dist.all_gather_object(gathered, dict(entries))
        return {key: value for part in gathered for key, value in part.items()}

    def wait(self) -> None:
        """Wait until all processes have called this."""
        self.accelerator.wait_for_everyone()


def full_tensor(tensor: Tensor) -> Tensor:
    """Return the full tensor of a shard; every process must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def place_like(value: Tensor, like: Tensor) -> Tensor:
    """Return a full tensor with the device, dtype and sharding of `like`."""
    value = value.to(device=like.device, dtype=like.dtype)
    if isinstance(like, DTensor):
        return distribute_tensor(value, like.device_mesh, like.placements)
    return value


def full_state_dict(module: nn.Module, keep: bool = True) -> dict[str, Any]:
    """Return a state dict of full tensors on the CPU; all processes call it, those without `keep` get {}."""
    state: dict[str, Any] = {}
    for name, value in module.state_dict().items():
        full = full_tensor(value.detach())
        if keep:
            state[name] = full.cpu()
    return state
