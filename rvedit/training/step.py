"""The training step (Algorithm 1, lines 2-12)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from rvedit.model.conditioning import condition
from rvedit.model.latents import encode
from rvedit.model.routing import Conditioning
from rvedit.objective.alignment import alignment_loss
from rvedit.objective.flow_matching import flow_matching_loss, interpolate, shift_time
from rvedit.pipeline import RVEDiTPipeline
from rvedit.recipes import AlignmentRecipe, FlowRecipe


@dataclass(frozen=True)
class Premise:
    """One side of a triplet, as a branch is conditioned on it: (v, l) or (v*, l*)."""

    clips: Float[Tensor, "b 3 t h w"]
    """Pixels in [-1, 1]."""
    frames: Sequence[UInt8[np.ndarray, "n y x 3"]]
    """What the multimodal LLM sees of each clip."""
    texts: Sequence[str]


@dataclass(frozen=True)
class TripletBatch:
    """A minibatch of (v, l, v*, l*)."""

    editing: Premise
    """(v, l): the source and the instruction."""
    reference: Premise
    """(v*, l*): the true edit and its caption."""


def sample_depth(seed: int, step: int, num_layers: int) -> int:
    """A block 1 ... L, uniformly (Alg. 1, line 9); equal on every rank, and known before the forward pass."""
    return int(np.random.default_rng([seed, step, 9]).integers(1, num_layers + 1))


def training_losses(
    models: RVEDiTPipeline,
    batch: TripletBatch,
    flow: FlowRecipe,
    alignment: AlignmentRecipe,
    seed: int,
    step: int,
) -> dict[str, Tensor]:
    """L = L_fm + lambda L_align (Eq. 6) of one minibatch, and its parts.

    The reference branch sees the same noisy target at the same time as the editing branch, so the two traces
    differ by their conditioning alone; it needs no gradient and stops at the sampled block.
    """
    transformer = models.transformer
    device = batch.editing.clips.device
    with torch.no_grad():
        source = encode(models.vae, batch.editing.clips)
        target = encode(models.vae, batch.reference.clips)
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    uniform = torch.rand(len(target), generator=generator)
    noise = torch.randn(target.shape, generator=generator).to(device)
    t = shift_time(uniform, flow.shift).to(device)
    noisy = interpolate(target, noise, t)

    depth = sample_depth(seed, step, len(transformer.blocks)) if alignment.weight else None
    output = transformer(noisy, 1000 * t, _condition(models, source, batch.editing), trace_depth=depth)
    assert output.sample is not None
    losses = {"loss_fm": flow_matching_loss(output.sample, target, noise)}
    losses["loss"] = losses["loss_fm"]
    if depth is not None:
        with torch.no_grad():
            if alignment.own_noise:
                noisy = interpolate(target, torch.randn(target.shape, generator=generator).to(device), t)
            reference = _condition(models, target, batch.reference)
            anchor = transformer(noisy, 1000 * t, reference, trace_depth=depth, stop_at_trace=True).trace
        assert output.trace is not None
        losses["loss_align"] = alignment_loss(output.trace, anchor, alignment.temperature)
        losses["loss"] = losses["loss_fm"] + alignment.weight * losses["loss_align"]
    return losses


def _condition(models: RVEDiTPipeline, latents: Tensor, premise: Premise) -> Conditioning:
    return condition(models, latents, premise.frames, premise.texts)
