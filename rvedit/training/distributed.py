"""The processes of a run, on one machine or several: DDP, FSDP2, and HSDP, which is FSDP2 with copies.

accelerate reads the environment of `torchrun` or `accelerate launch` and wraps the model for DDP. FSDP2 is
torch's `fully_shard`, called here directly, since accelerate does not support it on CPUs, where it is tested.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs
from diffusers.models.transformers.transformer_wan import WanTimeTextImageEmbedding, WanTransformerBlock
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from rvedit.compat import computes_bf16
from rvedit.io.errors import UserError, reason_of
from rvedit.models.context_parallel import share_clips
from rvedit.models.cross_attention import block_trace
from rvedit.training.skeleton import skeleton_of

Value = TypeVar("Value")

SHARDED_LAYERS = (
    *("WanTransformerBlock", "UMT5Block"),
    *("Qwen2_5_VLDecoderLayer", "Qwen2_5_VLVisionBlock"),
)
"""Layer classes that FSDP2 shards, and gathers one at a time."""


class Processes:
    """This process's rank and device, and collective operations, which do nothing in a single process."""

    def __init__(
        self,
        strategy: Literal["ddp", "fsdp2", "hsdp"] = "ddp",
        device: str | None = None,
        precision: Literal["bf16", "fp32"] = "fp32",
        shard_size: int | None = None,
        context_parallel: int = 1,
    ):
        self.strategy, self.shard_size, self.context_parallel = strategy, shard_size, context_parallel
        self.accelerator = Accelerator(cpu=device == "cpu")
        self.device = self.accelerator.device if device is None else torch.device(device)
        if self.count > 1:
            self.device = self.accelerator.device
        self.bf16 = precision == "bf16" and computes_bf16(self.device)
        if self.count % context_parallel:
            raise UserError(
                f"context_parallel is {context_parallel}: it must divide the number of processes, "
                f"{self.count}: set it to 1, or start more with torchrun"
            )

    @property
    def count(self) -> int:
        """Return the number of processes."""
        return int(self.accelerator.num_processes)

    @property
    def rank(self) -> int:
        """Return the rank of this process, from 0."""
        return int(self.accelerator.process_index)

    @property
    def data_count(self) -> int:
        """Return the number of minibatches that are computed at once: by one process, or by several."""
        return self.count // self.context_parallel

    @property
    def data_rank(self) -> int:
        """Return which of these minibatches this process computes, or helps to compute."""
        return self.rank // self.context_parallel

    @property
    def is_main(self) -> bool:
        """Return whether this process writes files."""
        return self.rank == 0

    @property
    def is_sharded(self) -> bool:
        """Return whether a process holds only a part of the model."""
        return self.strategy != "ddp"

    def autocast(self, enabled: bool = True) -> torch.autocast:
        """Return the context in which the model computes in bf16, if the run does and if `enabled`."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled and self.bf16)

    def from_main(self, build: Callable[[], Value]) -> Value:
        """Return the result of a function that only the main process calls, if the model is sharded.

        The other processes get it with its parameters on the meta device, so that one process alone holds all
        of the model, in host memory. `wrap` and `receive` give them their values. Errors of the main process
        are raised in all of them.
        """
        if not self.is_sharded or self.count == 1:
            return build()
        message: list[Any] = [None, None]
        if self.is_main:
            try:
                value = build()
                message[0] = skeleton_of(value)
            except Exception as error:  # the others must not wait for what does not come
                failure, message[1] = error, reason_of(error)
        dist.broadcast_object_list(message, device=self.device)
        if message[1] is not None:
            raise failure if self.is_main else UserError(message[1])
        return value if self.is_main else pickle.loads(message[0])

    def receive(self, module: nn.Module) -> None:
        """Move a module to the device, with the main process's values if the model is sharded.

        Parts that are shards already are left as they are.
        """
        shared = self.is_sharded and self.count > 1
        for parameter in module.parameters():
            if not isinstance(parameter, DTensor):
                values = torch.empty_like(parameter, device=self.device)
                if self.is_main or not shared:
                    values.copy_(parameter.detach())
                if shared:
                    dist.broadcast(values, 0)
                # In place, as several modules may share it.
                torch.utils.swap_tensors(parameter, nn.Parameter(values, parameter.requires_grad))
        for buffer in module.buffers():
            buffer.data = buffer.data.to(self.device)

    def wrap(self, objective: nn.Module) -> nn.Module:
        """Return the model on the device, wrapped for DDP or FSDP2; `objective` keeps its parameter names."""
        if self.is_sharded:  # moves one layer at a time: the whole may not fit on a device
            return self._shard(objective)
        objective.to(self.device)
        if self.count == 1:
            return objective
        # Otherwise DDP would wait for gradients of parameters that the step does not use.
        idle = bool(getattr(objective, "has_idle_parts", False))
        self.accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=idle)
        wrapped: nn.Module = self.accelerator.prepare_model(objective)
        return wrapped

    def share_clips(self, transformer: nn.Module) -> None:
        """Let `context_parallel` processes compute each clip together."""
        if self.context_parallel > 1:
            shape, names = (self.data_count, 1, self.context_parallel), ("data", "ring", "ulysses")
            share_clips(transformer, init_device_mesh(self.device.type, shape, mesh_dim_names=names))

    def _mesh(self) -> DeviceMesh:
        """Return the processes as a row of shards; for HSDP, as a row of them for each copy of the model."""
        if not dist.is_initialized():
            raise UserError(
                f"parallel: {self.strategy} needs the processes of torchrun or `accelerate launch`"
            )
        if self.strategy == "fsdp2":
            return init_device_mesh(self.device.type, (self.count,))
        size = self.shard_size or int(os.environ.get("LOCAL_WORLD_SIZE", self.count))
        if self.count % size:
            raise UserError(
                f"shard_size is {size}: it must divide the number of processes, {self.count}: set another, "
                "or parallel: fsdp2"
            )
        shape = (self.count // size, size)
        return init_device_mesh(self.device.type, shape, mesh_dim_names=("copies", "shards"))

    def _shard(self, objective: nn.Module) -> nn.Module:
        """Shard each layer, and the rest as one unit.

        Shards are fp32. With bf16 they are gathered in bf16, which halves the traffic, and gradients are
        summed in fp32. Inputs are not cast: in bf16 the timestep 501.3 would be 502. The layers of the time
        embedding are units of their own, gathered in fp32, as Wan computes it.
        """
        mesh, exact = self._mesh(), MixedPrecisionPolicy(cast_forward_inputs=False)
        policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if self.bf16 else None,
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,
        )
        for module in list(objective.modules()):
            if isinstance(module, WanTimeTextImageEmbedding):
                for layer in (module.time_embedder, module.time_proj):
                    self.receive(layer)
                    fully_shard(layer, mesh=mesh, mp_policy=exact)
            if type(module).__name__ not in SHARDED_LAYERS:
                continue
            self.receive(module)
            fully_shard(module, mesh=mesh, mp_policy=policy)
            if isinstance(module, WanTransformerBlock):
                module.trace = MethodType(block_trace, module)
                register_fsdp_forward_method(module, "trace")
        self.receive(objective)
        fully_shard(objective, mesh=mesh, mp_policy=policy)
        for method in ("edit", "held_out_losses"):
            if hasattr(objective, method):
                register_fsdp_forward_method(objective, method)
        return objective

    @contextmanager
    def gradient_sync(self, model: nn.Module, synchronize: bool) -> Iterator[None]:
        """Average gradients over the processes, in a backward pass in this context, only if `synchronize`.

        FSDP2 always does: only so does no process keep the gradients of the whole model.
        """
        if isinstance(model, nn.parallel.DistributedDataParallel) and not synchronize:
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
        """Return the squared L2 norm of each tensor; those of shards are summed over the copy."""
        norms = [torch.linalg.vector_norm(local_tensor(x)) for x in tensors]
        squares = torch.stack(norms).double().square()
        shard = next((x for x in tensors if isinstance(x, DTensor)), None)
        if shard is not None:
            dist.all_reduce(squares, group=shard.device_mesh.get_group(shard.device_mesh.ndim - 1))
        return squares

    def writes(self, tensor: Tensor, number: int) -> bool:
        """Return whether this process is to write the `number`-th tensor, or its part of it.

        Copies of a shard share the work among them, and so do those who all hold the whole tensor.
        """
        if isinstance(tensor, DTensor):
            mesh = tensor.device_mesh
            return mesh.ndim == 1 or number % mesh.size(0) == mesh.get_local_rank(0)
        return number % self.count == self.rank

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


def local_tensor(tensor: Tensor) -> Tensor:
    """Return this process's part of a shard, which shares its memory; other tensors as they are."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def first_row(tensor: Tensor) -> int:
    """Return where this process's part of a shard begins along the first dimension; 0 for other tensors."""
    if not isinstance(tensor, DTensor):
        return 0
    mesh = tensor.device_mesh
    rows = -(-len(tensor) // mesh.size(mesh.ndim - 1))
    return min(len(tensor), rows * mesh.get_local_rank(mesh.ndim - 1))


def as_shard(local: Tensor, like: Tensor) -> Tensor:
    """Return a process's own part as a shard of the full tensor that `like` is a shard of."""
    if not isinstance(like, DTensor):
        return local
    return DTensor.from_local(
        local, like.device_mesh, like.placements, shape=like.shape, stride=like.stride()
    )


def place_like(value: Tensor, like: Tensor) -> Tensor:
    """Return a full tensor with the device, dtype and sharding of `like`."""
    value = value.to(device=like.device, dtype=like.dtype)
    if isinstance(like, DTensor) and not isinstance(value, DTensor):
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
