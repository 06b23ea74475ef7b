"""Optimizers behind one small face: a rate, a step, and a state with names.

`adamw` is the paper's. `muon` is for models trained from scratch on little compute: the kernels of linear and
convolutional layers take orthogonalised steps, everything else stays with AdamW.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from rvedit.recipes import OptimizerRecipe

MATRIX_LAYERS = (nn.Linear, nn.Conv2d, nn.Conv3d)


class NamedOptimizer:
    """One or two torch optimizers over the trained parameters of a model."""

    def __init__(self, model: nn.Module, recipe: OptimizerRecipe):
        self.recipe = recipe
        self.trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        kernels = self._kernels(model) if recipe.name == "muon" else {}
        # Muon takes matrices: a convolution's kernel is seen as (out, in * kernel), sharing its memory.
        self.matrices = {n: nn.Parameter(p.detach().view(len(p), -1)) for n, p in kernels.items()}
        rest = {n: p for n, p in self.trained.items() if n not in kernels}
        self.stepped: dict[str, nn.Parameter] = {**rest, **self.matrices}
        groups = [
            {"params": [p for p in rest.values() if p.ndim >= 2], "weight_decay": recipe.weight_decay},
            {"params": [p for p in rest.values() if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas, fused=True)
        ]
        if self.matrices:
            muon = torch.optim.Muon(
                list(self.matrices.values()),
                lr=recipe.matrix_learning_rate,
                weight_decay=recipe.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
            self.optimizers.append(muon)

    def _kernels(self, model: nn.Module) -> dict[str, nn.Parameter]:
        names = {f"{n}.weight".lstrip(".") for n, m in model.named_modules() if isinstance(m, MATRIX_LAYERS)}
        return {n: p for n, p in self.trained.items() if n in names}

    def step(self, fraction: float) -> None:
        """Descend the model's gradients at a fraction of the peak rates, then clear them."""
        for name, matrix in self.matrices.items():
            gradient = self.trained[name].grad
            matrix.grad = None if gradient is None else gradient.reshape(len(matrix), -1)
        rates = (self.recipe.learning_rate, self.recipe.matrix_learning_rate)
        for optimizer, rate in zip(self.optimizers, rates, strict=False):
            for group in optimizer.param_groups:
                group["lr"] = rate * fraction
            optimizer.step()
        for parameter in (*self.trained.values(), *self.matrices.values()):
            parameter.grad = None

    def named_state(self) -> dict[str, Tensor]:
        """Every moment, under `parameter/moment`."""
        return {
            f"{name}/{key}": value
            for name, parameter in self.stepped.items()
            for optimizer in self.optimizers
            for key, value in optimizer.state.get(parameter, {}).items()
        }

    def load_named_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `named_state` gave."""
        owners = {id(p): o for o in self.optimizers for group in o.param_groups for p in group["params"]}
        for key, value in state.items():
            name, _, moment = key.rpartition("/")
            parameter = self.stepped[name]
            device = "cpu" if moment == "step" else parameter.device
            owners[id(parameter)].state[parameter][moment] = value.to(device)
