"""Gradients of a training step, and the share of alignment in them.

The weight of Eq. 6 alone does not tell how much alignment changes an update: that depends on the norms of
both gradients. Their ratio, weight x |grad L_align| / |grad L_fm|, is measured here, or kept constant by
setting the weight in every step (`alignment.ratio`).

Each loss then has a forward and a backward pass of its own. This works alike with accumulation, gradient
checkpointing and several processes, which do not all allow two backward passes through one graph, and needs
no more memory for activations. L_align's passes end at the traced block.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rvedit.io.errors import UserError
from rvedit.training.distributed import Processes
from rvedit.training.recipe import Recipe

SMOOTHING_STEPS = 20
"""The weight of `alignment.ratio` follows a running mean over about so many steps."""


class StepGradients:
    """Computes the gradients of a step's minibatches into the parameters' `grad`.

    `model` is `objective` as wrapped for several processes, and `trained` its trained parameters by name.
    Raises UserError if the recipe needs separate gradients and the task has one loss only.
    """

    log_ratio: float | None
    """Running mean of ln(|grad L_align| / |grad L_fm|) for `alignment.ratio`; None before its first step."""

    def __init__(
        self,
        objective: nn.Module,
        model: nn.Module,
        trained: Mapping[str, nn.Parameter],
        processes: Processes,
        recipe: Recipe,
        log_ratio: float | None = None,
    ):
        self.objective: Any = objective
        self.model, self.trained, self.processes, self.recipe = model, trained, processes, recipe
        self.log_ratio = log_ratio
        alignment = recipe.alignment
        if (alignment.ratio or alignment.log_ratio_every) and not hasattr(objective, "with_latents"):
            raise UserError(
                f"alignment.ratio and alignment.log_ratio_every are for task: editor, not {recipe.task}: "
                "remove them"
            )

    def compute(self, minibatches: Iterable[Any], step: int, updates: int) -> dict[str, float]:
        """Compute the gradient of Eq. 6; return the losses and, if measured, `grad_ratio_align`.

        `updates` is the number of updates before this step. With `alignment.ratio` the weight is returned as
        `align_weight`. Measuring does not change the gradient.
        """
        alignment = self.recipe.alignment
        if alignment.ratio is None and not alignment.logs_ratio_at(step):
            return self.accumulate(minibatches, step)
        batches = [self.objective.with_latents(batch) for batch in minibatches]
        losses, fm = self.of_loss("loss_fm", batches, step)
        losses_align, align = self.of_loss("loss_align", batches, step)
        ratio = gradient_ratio(fm, align, self.processes)
        if alignment.ratio is None:
            del fm, align
            measured = alignment.weight_at(step) * ratio
            return {**self.accumulate(batches, step), "grad_ratio_align": measured}
        self._smooth(ratio, updates)
        weight = 0.0 if self.log_ratio is None else alignment.ratio_at(step) / math.exp(self.log_ratio)
        for name, parameter in self.trained.items():
            parameter.grad = _weighted_sum(fm.get(name), align.get(name), weight)
        losses = {"loss_fm": losses["loss_fm"], "loss_align": losses_align["loss_align"]}
        losses["loss"] = losses["loss_fm"] + weight * losses["loss_align"]
        return {**losses, "align_weight": weight, "grad_ratio_align": weight * ratio}

    def accumulate(
        self, minibatches: Iterable[Any], step: int, only: str | None = None, synchronize: bool = True
    ) -> dict[str, float]:
        """Add the mean gradient over minibatches to the parameters' `grad`; return the mean losses.

        Gradients are averaged over the processes only if `synchronize`. Processes that share a clip have
        parts of its gradient, of which the average has to be the sum.
        """
        count, shared = self.recipe.accumulation, self.processes.context_parallel
        losses: dict[str, float] = {}
        for part, batch in enumerate(minibatches, start=1):
            with self.processes.gradient_sync(self.model, synchronize and part == count):
                with self.processes.autocast():
                    arguments = (batch, step) if only is None else (batch, step, only)
                    scalars: dict[str, Tensor] = self.model(*arguments)
                (scalars["loss"] * shared / count).backward()
            for name, value in scalars.items():
                losses[name] = losses.get(name, 0.0) + float(value.detach()) / count
        return losses

    def of_loss(
        self, loss: str, minibatches: Iterable[Any], step: int
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Return the losses and the gradient of one loss by parameter; `grad` is None before and after.

        Parameters that the loss does not reach may be missing.
        """
        # DDP waits for all parameters, but L_align does not reach all of them. So its gradients are averaged
        # here, and DDP does not notice these passes.
        sharded = self.processes.is_sharded
        losses = self.accumulate(minibatches, step, loss, synchronize=sharded)
        gradients = {}
        for name, parameter in self.trained.items():
            if not sharded and self.processes.count > 1 and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)  # another process's batch may reach it
            if parameter.grad is not None:
                gradients[name] = parameter.grad
            parameter.grad = None
        if not sharded:
            self.processes.average(list(gradients.values()))
        return losses, gradients

    def _smooth(self, ratio: float, updates: int) -> None:
        """Update the running mean: a plain mean at first, then exponential. Ignore what has no logarithm."""
        if not math.isfinite(ratio) or ratio <= 0:
            return
        before = math.log(ratio) if self.log_ratio is None else self.log_ratio
        self.log_ratio = before + (math.log(ratio) - before) / min(updates + 1, SMOOTHING_STEPS)


def gradient_ratio(fm: Mapping[str, Tensor], align: Mapping[str, Tensor], processes: Processes) -> float:
    """Return |grad L_align| / |grad L_fm|, L2 norms over the parameters that both losses reach."""
    names = [name for name in fm if name in align]
    squares = processes.squared_norms([gradients[name] for gradients in (fm, align) for name in names])
    above, below = squares.view(2, -1).flip(0)
    shared = ((above > 0) & (below > 0)) | ~(above + below).isfinite()
    return float((above[shared].sum() / below[shared].sum()).sqrt())


def _weighted_sum(fm: Tensor | None, align: Tensor | None, weight: float) -> Tensor | None:
    if fm is None or align is None:
        return fm if align is None else weight * align
    return fm.add_(align, alpha=weight)
