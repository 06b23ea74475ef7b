"""The training step (Algorithm 1, lines 2-12)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from rvedit.losses.alignment import alignment_loss
from rvedit.losses.flow_matching import flow_matching_loss, interpolate, shift_time
from rvedit.models.autoencoder import encode
from rvedit.models.routing import TokenGroups
from rvedit.models.token_groups import encode_tokens
from rvedit.pipelines.noise import mix_shared_noise
from rvedit.pipelines.pipeline_rvedit import RVEDiTPipeline
from rvedit.training.recipe import AlignmentRecipe, FlowRecipe


@dataclass(frozen=True)
class BranchInputs:
    """One side of a triplet, as a branch is conditioned on it: (v, l) or (v*, l*)."""

    clips: Float[Tensor, "b 3 t h w"] | None
    """Pixels in [-1, 1]; none where the latents are given."""
    frames: Sequence[UInt8[np.ndarray, "n y x 3"]]
    """What the multimodal LLM sees of each clip."""
    texts: Sequence[str]
    latents: Float[Tensor, "b c f y x"] | None = None
    """Clean and normalised, from a cache."""
    text_states: Float[Tensor, "b m c"] | None = None
    """Of the text encoder, from a cache."""

    def to(self, device: torch.device) -> BranchInputs:
        """The same with its tensors on a device."""
        clips, latents, states = (
            None if x is None else x.to(device) for x in (self.clips, self.latents, self.text_states)
        )
        return replace(self, clips=clips, latents=latents, text_states=states)


@dataclass(frozen=True)
class TripletBatch:
    """A minibatch of (v, l, v*, l*)."""

    editing: BranchInputs
    """(v, l): the source and the instruction."""
    reference: BranchInputs
    """(v*, l*): the true edit and its caption."""
    numbers: Sequence[int] = ()
    """Each sample's number in the run, from which its time and its noise are drawn; none: 0, 1, ..."""

    def to(self, device: torch.device) -> TripletBatch:
        """The same with its tensors on a device."""
        return replace(self, editing=self.editing.to(device), reference=self.reference.to(device))


def sample_trace_block(seed: int, step: int, num_layers: int) -> int:
    """A block 1 ... L, uniformly (Alg. 1, line 9); equal on every rank, and known before the forward pass."""
    return int(np.random.default_rng([seed, step, 9]).integers(1, num_layers + 1))


def sample_noise_and_times(
    seed: int, numbers: Sequence[int], shape: Sequence[int], shared_noise_ratio: float = 0.0
) -> tuple[Float[Tensor, " b"], Float[Tensor, "b c f y x"], Float[Tensor, "b c f y x"]]:
    """A time in [0, 1), the noise, and other noise for a reference branch of its own, of each sample.

    Functions of the sample's number in the run: however samples are spread over processes, they are the same.
    Frames have a share of their noise in common.
    """
    one_frame = (shape[0], 1, *shape[2:])
    drawn = []
    for number in numbers:
        state = np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(state >> np.uint64(1)))
        time = torch.rand((), generator=generator)
        noises = [torch.randn(tuple(shape), generator=generator) for _ in range(2)]
        common = [torch.randn(one_frame, generator=generator) for _ in noises]
        mixed = (mix_shared_noise(*pair, shared_noise_ratio) for pair in zip(noises, common, strict=True))
        drawn.append((time, *mixed))
    times, noise, other_noise = (torch.stack(column) for column in zip(*drawn, strict=True))
    return times, noise, other_noise


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
    source, target = (_latents(models, side) for side in (batch.editing, batch.reference))
    numbers = batch.numbers or range(len(target))
    drawn = sample_noise_and_times(seed, numbers, target.shape[1:], flow.shared_noise_ratio)
    t, noise, other_noise = (x.to(target.device) for x in drawn)
    t = shift_time(t, flow.shift)
    noisy = interpolate(target, noise, t)

    depth = sample_trace_block(seed, step, len(transformer.blocks)) if alignment.weight else None
    output = transformer(noisy, 1000 * t, _encode_tokens(models, source, batch.editing), trace_depth=depth)
    assert output.sample is not None
    losses = {"loss_fm": flow_matching_loss(output.sample, target, noise)}
    losses["loss"] = losses["loss_fm"]
    if depth is not None:
        with torch.no_grad():
            if alignment.own_noise:
                noisy = interpolate(target, other_noise, t)
            reference = _encode_tokens(models, target, batch.reference)
            anchor = transformer(noisy, 1000 * t, reference, trace_depth=depth, stop_at_trace=True).trace
        assert output.trace is not None
        losses["loss_align"] = alignment_loss(output.trace, anchor, alignment.temperature)
        losses["loss"] = losses["loss_fm"] + alignment.weight_at(step) * losses["loss_align"]
    return losses


@torch.no_grad()
def _latents(models: RVEDiTPipeline, premise: BranchInputs) -> Tensor:
    """A side's clean latents, given or encoded: in fp32, as a cache's and an edit's are."""
    if premise.latents is not None:
        return premise.latents
    assert premise.clips is not None
    with torch.autocast(premise.clips.device.type, enabled=False):
        return encode(models.vae, premise.clips)


def _encode_tokens(models: RVEDiTPipeline, latents: Tensor, premise: BranchInputs) -> TokenGroups:
    return encode_tokens(models, latents, premise.frames, premise.texts, premise.text_states)
