"""Optimizers with one interface: a learning rate, a step, and a state by parameter name.

`adamw` is the paper's. `adamw8bit` is for small GPUs: its moments are 8-bit numbers. `muon` is for models
trained from scratch with little compute: weights of linear and convolutional layers get orthogonalized
updates, all other parameters use AdamW.
"""

from __future__ import annotations

import importlib
from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from rvedit.compat import computes_bf16
from rvedit.io.errors import UserError
from rvedit.training.distributed import as_shard, local_tensor, place_like
from rvedit.training.recipe_sections import OptimizerRecipe

NEWTON_SCHULZ = (3.4445, -4.775, 2.0315)
MATRIX_LAYERS = (nn.Linear, nn.Conv2d, nn.Conv3d)


def orthogonalize(matrices: Float[Tensor, "n r c"], steps: int = 5) -> Float[Tensor, "n r c"]:
    """Return the matrices with all singular values near 1 (Newton-Schulz, Jordan et al., Muon, 2024).

    It runs in bf16 if the device supports it; many CPUs emulate it, a hundred times slower than fp32.
    """
    x = matrices.bfloat16() if computes_bf16(matrices.device) else matrices
    if tall := x.shape[1] > x.shape[2]:
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Muon: orthogonalized momentum for matrices, with the root mean square of an AdamW update.

    The update is that of torch.optim.Muon with `match_rms_adamw`, which computes in bf16 on every device.
    Here matrices of one shape are batched, which is faster for many small ones.
    """

    def __init__(
        self, matrices: list[nn.Parameter], lr: float, weight_decay: float, momentum: float = 0.95
    ) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            shapes = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    shapes[matrix.shape].append(matrix)
            for (rows, columns), matrices in shapes.items():
                update = orthogonalize(torch.stack([self._momentum(m, group["momentum"]) for m in matrices]))
                update = update * (0.2 * max(rows, columns) ** 0.5 * group["lr"])
                for matrix, change in zip(matrices, update, strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"]).sub_(change)

    def _momentum(self, matrix: nn.Parameter, momentum: float) -> Tensor:
        """Update the momentum buffer; return the Nesterov momentum."""
        gradient = matrix.grad
        assert gradient is not None
        buffer = self.state[matrix].setdefault("momentum_buffer", torch.zeros_like(matrix))
        buffer.lerp_(gradient, 1 - momentum)
        return gradient.lerp(buffer, momentum)


def _adamw_8bit() -> Any:
    """Return bitsandbytes' AdamW, whose moments are 8-bit numbers with a scale per 256 values."""
    try:
        bnb = importlib.import_module("bitsandbytes")
    except ImportError:
        raise UserError(
            "optimizer.name adamw8bit: needs the package bitsandbytes: pip install 'rvedit[quantize]'"
        ) from None
    return bnb.optim.AdamW8bit


class NamedOptimizer:
    """AdamW, and Muon if chosen, over the trained parameters of a model.

    AdamW updates a process's own part of a sharded parameter, on which its fused kernel is many times as fast
    as on a DTensor. This is exact, as AdamW treats all elements alike.
    """

    def __init__(self, model: nn.Module, recipe: OptimizerRecipe):
        self.recipe = recipe
        self.trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        shards = {n: nn.Parameter(p.to_local()) for n, p in self.trained.items() if isinstance(p, DTensor)}
        self.local: dict[str, nn.Parameter] = {**self.trained, **shards}
        if recipe.name == "muon" and shards:
            raise UserError(
                "optimizer.name is muon, which needs unsharded matrices: set parallel: ddp, or "
                "optimizer.name: adamw"
            )
        kernels = self._kernels(model) if recipe.name == "muon" else {}
        # A convolution's kernel is a view (out, in * kernel), as Muon needs matrices.
        self.matrices = {n: nn.Parameter(p.detach().view(len(p), -1)) for n, p in kernels.items()}
        others = {n: p for n, p in self.local.items() if n not in kernels}
        self.updated: dict[str, nn.Parameter] = {**others, **self.matrices}
        self.views = {**shards, **self.matrices}
        groups = [
            {"params": [p for p in others.values() if p.ndim >= 2], "weight_decay": recipe.weight_decay},
            {"params": [p for p in others.values() if p.ndim < 2], "weight_decay": 0.0},
        ]
        adamw = partial(torch.optim.AdamW, fused=True)
        if recipe.name == "adamw8bit":
            if shards:
                raise UserError("optimizer.name adamw8bit cannot be sharded: set parallel: ddp")
            adamw = _adamw_8bit()
        self.optimizers: list[torch.optim.Optimizer] = [
            adamw(groups, lr=recipe.learning_rate, betas=recipe.betas)
        ]
        if self.matrices:
            muon = Muon(list(self.matrices.values()), recipe.matrix_learning_rate, recipe.weight_decay)
            self.optimizers.append(muon)

    def _kernels(self, model: nn.Module) -> dict[str, nn.Parameter]:
        names = {f"{n}.weight".lstrip(".") for n, m in model.named_modules() if isinstance(m, MATRIX_LAYERS)}
        return {n: p for n, p in self.trained.items() if n in names}

    def clear(self) -> None:
        """Clear the gradients."""
        for parameter in (*self.trained.values(), *self.views.values()):
            parameter.grad = None

    def step(self, fraction: float) -> None:
        """Update the parameters at a fraction of the peak learning rates, then clear the gradients."""
        for name, view in self.views.items():
            gradient = self.trained[name].grad
            view.grad = None if gradient is None else local_tensor(gradient).reshape(view.shape)
        rates = (self.recipe.learning_rate, self.recipe.matrix_learning_rate)
        for optimizer, rate in zip(self.optimizers, rates, strict=False):
            for group in optimizer.param_groups:
                group["lr"] = rate * fraction
            optimizer.step()
        self.clear()

    def named_state(self) -> dict[str, Tensor]:
        """Return the optimizer state as {"parameter/moment": tensor}, moments sharded like parameters."""
        return {
            f"{name}/{key}": self._as_saved(name, value)
            for name, parameter in self.updated.items()
            for optimizer in self.optimizers
            for key, value in optimizer.state.get(parameter, {}).items()
        }

    def _as_saved(self, name: str, value: Any) -> Tensor:
        if self.recipe.name == "adamw8bit":
            # bitsandbytes counts steps by numbers, and its parameters share tensors, which no file can hold.
            return value.clone() if isinstance(value, Tensor) else torch.tensor(value)
        return as_shard(value, self.trained[name]) if value.ndim else torch.as_tensor(value)

    def load_named_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore the result of `named_state`; its moments may be whole tensors."""
        owners = {id(p): o for o in self.optimizers for group in o.param_groups for p in group["params"]}
        for key, value in state.items():
            name, _, moment = key.rpartition("/")
            parameter = self.updated[name]
            if self.recipe.name == "adamw8bit":
                placed = int(value) if moment == "step" else value.to(parameter.device)
            elif moment == "step":  # fused AdamW needs its step counter on the parameter's device
                placed = value.to(parameter.device)
            else:
                placed = local_tensor(place_like(value, self.matrices.get(name, self.trained[name])))
            owners[id(parameter)].state[parameter][moment] = placed
