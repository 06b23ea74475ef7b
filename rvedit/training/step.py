"""The training step (Algorithm 1, lines 2-12)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from rvedit.io.frames import batch_to_model_range
from rvedit.losses.alignment import alignment_loss
from rvedit.losses.flow_matching import flow_matching_loss, interpolate, shift_time
from rvedit.models.autoencoder import encode
from rvedit.models.reference_images import ReferenceImages
from rvedit.models.routing import TokenGroups
from rvedit.models.token_groups import encode_tokens
from rvedit.pipelines.noise import mix_shared_noise
from rvedit.pipelines.pipeline_rvedit import RVEDiTPipeline
from rvedit.training.recipe_sections import AlignmentRecipe, FlowRecipe

Loss = Literal["loss_fm", "loss_align"]
"""The two losses of Eq. 6."""


@dataclass(frozen=True)
class BranchInputs:
    """The conditioning of a branch: (v, l) for the editing branch, (v*, l*) for the reference branch."""

    clips: UInt8[Tensor, "b t h w 3"] | None
    """Pixels as bytes, of which the dataloader moves a quarter of what floats need; None with `latents`."""
    frames: Sequence[UInt8[np.ndarray, "n y x 3"]]
    """Frames of each clip for the multimodal LLM."""
    texts: Sequence[str]
    latents: Float[Tensor, "b c f y x"] | None = None
    """Clean, normalized latents from a cache."""
    text_states: Float[Tensor, "b m c"] | None = None
    """States of the text encoder from a cache."""
    edit_tokens: Float[Tensor, "b k d"] | None = None
    """X_e, if it is already known."""

    def to(self, device: torch.device) -> BranchInputs:
        """Return the inputs with their tensors on a device."""
        clips, latents, states = (
            None if x is None else x.to(device) for x in (self.clips, self.latents, self.text_states)
        )
        return replace(self, clips=clips, latents=latents, text_states=states)


@dataclass(frozen=True)
class PictureInputs:
    """The reference images of a minibatch, which both branches get."""

    pixels: UInt8[Tensor, "b 1 h w 3"]
    """At the clips' size."""
    frames: Sequence[UInt8[np.ndarray, "y x 3"]]
    """For the multimodal LLM."""

    def to(self, device: torch.device) -> PictureInputs:
        """Return the pictures with their pixels on a device."""
        return replace(self, pixels=self.pixels.to(device))


@dataclass(frozen=True)
class TripletBatch:
    """A minibatch of (v, l, v*, l*)."""

    editing: BranchInputs
    """(v, l): source and instruction."""
    reference: BranchInputs
    """(v*, l*): target and caption."""
    numbers: Sequence[int] = ()
    """Each sample's number in the run, the seed of its timestep and noise; empty: 0, 1, ..."""
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """Reasons why clips of this batch could not be read, by path; others took their place."""
    pictures: PictureInputs | None = None
    reference_images: ReferenceImages | None = None
    """The encoded pictures, after `with_latents`."""
    loss_weights: Float[Tensor, "b 1 f y x"] | None = None
    """Weights of L_fm, from the masks of the samples; None: all are 1."""

    def to(self, device: torch.device) -> TripletBatch:
        """Return the batch with its tensors on a device."""
        pictures = self.pictures and self.pictures.to(device)
        weights = None if self.loss_weights is None else self.loss_weights.to(device)
        return replace(
            self,
            editing=self.editing.to(device),
            reference=self.reference.to(device),
            pictures=pictures,
            loss_weights=weights,
        )


TIME_BINS = 4
"""Bins of the timestep t, from 0 to 1, by which L_fm is logged."""
_SUM, _COUNT = "sum_fm_bin", "count_fm_bin"


def sample_trace_block(seed: int, step: int, num_layers: int) -> int:
    """Return a uniformly drawn block 1 ... L (Alg. 1, line 9), equal on every rank."""
    return int(np.random.default_rng([seed, step, 9]).integers(1, num_layers + 1))


def sample_noise_and_timesteps(
    seed: int, numbers: Sequence[int], shape: Sequence[int], shared_noise_ratio: float = 0.0
) -> tuple[Float[Tensor, " b"], Float[Tensor, "b c f y x"], Float[Tensor, "b c f y x"]]:
    """Return each sample's timestep in [0, 1), noise, and separate noise for the reference branch.

    They depend on `seed` and the sample's number alone, not on how samples are distributed over processes.
    `shared_noise_ratio` is the share of the noise's variance that is common to all frames.
    """
    one_frame = (shape[0], 1, *shape[2:])
    samples = []
    for number in numbers:
        state = np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(state >> np.uint64(1)))
        timestep = torch.rand((), generator=generator)
        noises = [torch.randn(tuple(shape), generator=generator) for _ in range(2)]
        common = [torch.randn(one_frame, generator=generator) for _ in noises]
        mixed = (mix_shared_noise(*pair, shared_noise_ratio) for pair in zip(noises, common, strict=True))
        samples.append((timestep, *mixed))
    timesteps, noise, reference_noise = (torch.stack(column) for column in zip(*samples, strict=True))
    return timesteps, noise, reference_noise


def training_losses(
    models: RVEDiTPipeline,
    batch: TripletBatch,
    flow: FlowRecipe,
    alignment: AlignmentRecipe,
    seed: int,
    step: int,
    only: Loss | None = None,
) -> dict[str, Tensor]:
    """Return `loss` = L_fm + lambda L_align (Eq. 6) of a minibatch, `loss_fm` and `loss_align`.

    With `only`, return that loss alone, and again as `loss`. A weight that follows the gradients
    (`alignment.ratio`) is not known here, so `only` is then required.
    """
    batch = with_latents(models, batch)
    assert batch.reference.latents is not None
    target = batch.reference.latents
    numbers = batch.numbers or range(len(target))
    sampled = sample_noise_and_timesteps(seed, numbers, target.shape[1:], flow.shared_noise_ratio)
    t, noise, reference_noise = (x.to(target.device) for x in sampled)
    t = shift_time(t, flow.shift)
    aligned = alignment.enabled and only != "loss_fm"
    depth = sample_trace_block(seed, step, len(models.transformer.blocks)) if aligned else None
    own_noise = reference_noise if alignment.own_noise else None
    losses = losses_at(models, batch, t, noise, depth, alignment.temperature, own_noise, only)
    if only is not None:
        losses["loss"] = losses[only]
    elif depth is None:
        losses["loss"] = losses["loss_fm"]
    else:
        losses["loss"] = losses["loss_fm"] + alignment.weight_at(step) * losses["loss_align"]
    return losses


def binned(errors: Float[Tensor, " b"], t: Float[Tensor, " b"]) -> dict[str, Tensor]:
    """Return the sum of the errors in each of `TIME_BINS` equal bins of t, and their number, as metrics.

    Sums and numbers can be averaged over minibatches and processes; `with_bins` makes means of them.
    """
    index = (t * TIME_BINS).long().clamp_max(TIME_BINS - 1)
    metrics = {}
    for bin_number in range(TIME_BINS):
        inside = index == bin_number
        metrics[f"{_SUM}{bin_number}"] = (errors * inside).sum()
        metrics[f"{_COUNT}{bin_number}"] = inside.float().sum()
    return metrics


def with_bins(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return metrics with L_fm by bin of t, as `fm_t0.25-0.5`; bins without a sample are left out."""
    others = {name: value for name, value in metrics.items() if not name.startswith((_SUM, _COUNT))}
    for bin_number in range(TIME_BINS):
        if count := metrics.get(f"{_COUNT}{bin_number}", 0):
            name = f"fm_t{bin_number / TIME_BINS:g}-{(bin_number + 1) / TIME_BINS:g}"
            others[name] = metrics[f"{_SUM}{bin_number}"] / count
    return others


def losses_at(
    models: RVEDiTPipeline,
    batch: TripletBatch,
    t: Float[Tensor, " b"],
    noise: Float[Tensor, "b c f y x"],
    depth: int | None,
    temperature: float = 0.07,
    reference_noise: Float[Tensor, "b c f y x"] | None = None,
    only: Loss | None = None,
) -> dict[str, Tensor]:
    """Return `loss_fm`, also by t, and, if `depth` is a block 1 ... L, `loss_align` of a batch with latents.

    The reference branch gets the same noisy target and timestep as the editing branch, unless it has its own
    noise, so the two traces differ only by the conditioning. It needs no gradient and stops at block `depth`.
    With `only`, no other loss is returned; the editing branch, too, stops at block `depth` for `loss_align`.
    """
    transformer = models.transformer
    source, target = batch.editing.latents, batch.reference.latents
    assert source is not None
    assert target is not None
    noisy = interpolate(target, noise, t)
    output = transformer(
        noisy,
        1000 * t,
        _encode_tokens(models, source, batch.editing, batch.reference_images),
        trace_depth=depth,
        stop_at_trace=only == "loss_align",
    )
    losses = {}
    if output.sample is not None:
        of_samples = flow_matching_loss(output.sample, target, noise, batch.loss_weights)
        losses = {"loss_fm": of_samples.mean()}
        if only is None:
            losses |= binned(of_samples.detach(), t)
    if depth is not None:
        with torch.no_grad():
            if reference_noise is not None:
                noisy = interpolate(target, reference_noise, t)
            reference = _encode_tokens(models, target, batch.reference, batch.reference_images)
            anchor = transformer(noisy, 1000 * t, reference, trace_depth=depth, stop_at_trace=True).trace
        assert output.trace is not None
        losses["loss_align"] = alignment_loss(output.trace, anchor, temperature)
    return losses


def with_latents(models: RVEDiTPipeline, batch: TripletBatch) -> TripletBatch:
    """Return the batch with the clean latents of both clips; the pixels are dropped."""
    branches = (
        replace(inputs, latents=clean_latents(models, inputs), clips=None)
        for inputs in (batch.editing, batch.reference)
    )
    editing, reference = branches
    images, pictures = batch.reference_images, batch.pictures
    if pictures is not None:
        latents = _encode_clips(models, batch_to_model_range(pictures.pixels))
        images = ReferenceImages(pictures.frames, latents)
    return replace(batch, editing=editing, reference=reference, pictures=None, reference_images=images)


@torch.no_grad()
def clean_latents(models: RVEDiTPipeline, inputs: BranchInputs) -> Tensor:
    """Return a branch's clean latents; they are encoded in fp32, as in a cache and in an edit."""
    if inputs.latents is not None:
        return inputs.latents
    assert inputs.clips is not None
    return _encode_clips(models, batch_to_model_range(inputs.clips))


@torch.no_grad()
def _encode_clips(models: RVEDiTPipeline, clips: Tensor) -> Tensor:
    with torch.autocast(clips.device.type, enabled=False):
        return encode(models.vae, clips)


def _encode_tokens(
    models: RVEDiTPipeline, latents: Tensor, inputs: BranchInputs, images: ReferenceImages | None
) -> TokenGroups:
    return encode_tokens(
        models, latents, inputs.frames, inputs.texts, inputs.text_states, images, inputs.edit_tokens
    )
