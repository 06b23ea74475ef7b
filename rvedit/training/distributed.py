"""The processes of a run: one, several on a machine, or several machines.

accelerate reads what `torchrun` or `accelerate launch` set up, and wraps the model for DDP. FSDP2 is torch's
own `fully_shard`, called here, since accelerate leaves it out on CPUs, where it could not be tested then.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
"""Classes whose weights are put together for their own turn alone under FSDP2."""


class Processes:
    """Who this process is, and what all of them do together. Alone, every method is trivial."""

    def __init__(self, strategy: Literal["ddp", "fsdp2"] = "ddp", device: str | None = None):
        self.strategy = strategy
        self.accelerator = Accelerator(cpu=device == "cpu")
        self.device = self.accelerator.device if device is None else torch.device(device)
        if self.count > 1:
            self.device = self.accelerator.device

    @property
    def count(self) -> int:
        """Processes of the run."""
        return int(self.accelerator.num_processes)

    @property
    def rank(self) -> int:
        """Which of them this one is, from 0 on."""
        return int(self.accelerator.process_index)

    @property
    def is_main(self) -> bool:
        """Whether this one writes files."""
        return self.rank == 0

    def wrap(self, objective: nn.Module) -> nn.Module:
        """Spread the model over the processes; its parameters keep their names in `objective` itself."""
        objective.to(self.device)
        if self.strategy == "fsdp2":
            return self._shard(objective)
        if self.count == 1:
            return objective
        # Else DDP would wait for the gradients of what a step does not read.
        idle = bool(getattr(objective, "has_idle_parts", False))
        self.accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=idle)
        wrapped: nn.Module = self.accelerator.prepare_model(objective)
        return wrapped

    def _shard(self, objective: nn.Module) -> nn.Module:
        """FSDP2 over the layers of all parts, the rest as one. Shards stay fp32, autocast computes in bf16.

        Casting inputs is off: in bf16 the timestep 501.3 would be 502.
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
    def gradients(self, model: nn.Module, synchronize: bool) -> Iterator[None]:
        """Within it, a backward pass adds to the gradients; they are averaged over processes at the last."""
        if isinstance(model, FSDPModule):
            model.set_requires_gradient_sync(synchronize)
            yield
        elif isinstance(model, nn.parallel.DistributedDataParallel) and not synchronize:
            with model.no_sync():
                yield
        else:
            yield

    def mean(self, scalars: Mapping[str, float]) -> dict[str, float]:
        """Each scalar's mean over the processes."""
        if self.count == 1:
            return dict(scalars)
        values = torch.tensor(list(scalars.values()), dtype=torch.float64, device=self.device)
        dist.all_reduce(values)
        return dict(zip(scalars, (values / self.count).tolist(), strict=True))

    def any(self, flag: bool) -> bool:
        """Whether it is so in any process."""
        return self.mean({"flag": float(flag)})["flag"] > 0

    def wait(self) -> None:
        """Until all have come here."""
        self.accelerator.wait_for_everyone()


def full_tensor(tensor: Tensor) -> Tensor:
    """The full tensor of a shard; every process has to call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def place_like(value: Tensor, like: Tensor) -> Tensor:
    """A full tensor, on the device and in the shards of another."""
    value = value.to(device=like.device, dtype=like.dtype)
    if isinstance(like, DTensor):
        return distribute_tensor(value, like.device_mesh, like.placements)
    return value


def whole_state(module: nn.Module, keep: bool = True) -> dict[str, Any]:
    """A module's state with full tensors on the CPU; all processes take part, those with `keep` get it."""
    state: dict[str, Any] = {}
    for name, value in module.state_dict().items():
        full = full_tensor(value.detach())
        if keep:
            state[name] = full.cpu()
    return state
