"""Samples of an editor's training, and the minibatches made of them.

For every source, sample number n of a run is a function of n and the recipe alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.data import Dataset

from rvedit.io.errors import UserError
from rvedit.io.frames import Frames, Picture
from rvedit.io.records import ClipShape
from rvedit.models.mllm_frames import MLLMFrameProcessor
from rvedit.models.reference_images import pad_image
from rvedit.models.text_tokens import pad_text_states
from rvedit.training.buckets import BucketSchedule, drops_pictures, is_still
from rvedit.training.recipe import Recipe
from rvedit.training.step import BranchInputs, PictureInputs, TripletBatch

PICTURE_SCALES = (0.7, 1.0)
"""Range of the size of a reference image within the clip's frame."""


@dataclass(frozen=True)
class BranchSample:
    """A clip of a triplet, its frames for the multimodal LLM, and its text; see `BranchInputs`."""

    clip: Tensor | None
    latents: Tensor | None
    frames: Frames
    text: str
    text_states: Tensor | None = None


@dataclass(frozen=True)
class Sample:
    """A triplet and its number in the run."""

    number: int
    source: BranchSample
    target: BranchSample
    unreadable: Mapping[str, str]
    """See `LoadedTriplet`."""
    picture: tuple[Tensor, Picture] | None
    """Bytes of the reference image at the clips' size, and its picture for the multimodal LLM."""
    mask: Bool[Tensor, "f y x"] | None
    """See `LoadedTriplet`."""


@dataclass(frozen=True)
class LoadedTriplet:
    """The clips of source and target, the texts and the reference image of a triplet."""

    clips: Sequence[tuple[Tensor | None, Tensor | None, Frames]]
    """Pixels, latents and frames for the multimodal LLM."""
    instruction: str
    caption: str
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """Reasons why clips that it stands in for could not be read, by path."""
    picture: Picture | None = None
    mask: Bool[Tensor, "f y x"] | None = None
    """Where the edit changes the source, at the size of the latents; None: not known, or not used."""


class Samples(Dataset[Sample]):
    """The samples of a run; instruction, caption and reference image are dropped at random."""

    def __init__(self, recipe: Recipe, frame_processor: MLLMFrameProcessor, held_out: bool = False):
        self.recipe = recipe
        self.held_out = held_out
        self.data = recipe.data
        self.frame_processor = frame_processor
        self.order = BucketSchedule(recipe.data.seed, self.weights())

    def weights(self) -> Sequence[float]:
        """Return the weight of each bucket in the order of batches."""
        return self.data.shares

    def __getitem__(self, number: int) -> Sample:
        rng = np.random.default_rng([self.data.seed, number, 2])
        triplet = self.load(number, rng)
        # Both are always drawn, so that changing one dropout rate leaves the other's choices as they are.
        drops = rng.random(2)
        texts = (
            "" if drops[0] < self.data.instruction_dropout else triplet.instruction,
            "" if drops[1] < self.data.caption_dropout else triplet.caption,
        )
        source, target = (
            BranchSample(*clip, text, self.text_states(text))
            for clip, text in zip(triplet.clips, texts, strict=True)
        )
        picture = None
        if triplet.picture is not None:
            # Another size in each epoch, so that the model does not learn one, as in Kiwi-Edit's training.
            scale = np.random.default_rng([self.data.seed, number, 7]).uniform(*PICTURE_SCALES)
            shape = self.shape(number)
            padded = pad_image(triplet.picture, shape.height, shape.width, scale)
            picture = torch.from_numpy(padded[None]), self.frame_processor.reference_image(triplet.picture)
        return Sample(number, source, target, triplet.unreadable, picture, triplet.mask)

    def load(self, number: int, rng: np.random.Generator) -> LoadedTriplet:
        """Return the triplet of a sample number."""
        raise NotImplementedError

    @property
    def has_text_embeds(self) -> bool:
        """Return whether the samples include states of the text encoder."""
        return False

    def text_states(self, text: str) -> Tensor | None:
        """Return the text encoder's states if they are cached."""
        return None

    def position(self, number: int) -> tuple[int, int]:
        """Return a sample's bucket, and its number among the samples from that bucket.

        Triplets with reference images have buckets of their own, after those without.
        """
        step, index = divmod(number, self.recipe.batch_size)
        bucket, batches = self.order[step]
        return bucket, batches * self.recipe.batch_size + index

    def shape(self, number: int) -> ClipShape:
        """Return a sample's shape; all samples of a batch are stills, or none."""
        shape = self.data.shapes[self.position(number)[0] % len(self.data.shapes)]
        return shape.still if is_still(self.data, number // self.recipe.batch_size) else shape

    def has_picture(self, number: int) -> bool:
        """Return whether a sample is trained with a reference image; all samples of a batch are, or none."""
        is_one = self.position(number)[0] >= len(self.data.shapes)
        return is_one and not drops_pictures(self.data, number // self.recipe.batch_size)

    def as_pixels(self, clips: Iterable[Frames], has_picture: bool) -> list[tuple[Tensor, None, Frames]]:
        """Return clips in the form of `LoadedTriplet`."""
        return [
            (torch.from_numpy(np.ascontiguousarray(clip)), None, self.frame_processor(clip, has_picture))
            for clip in clips
        ]


def collate(samples: list[Sample], text_length: int, mask_weight: float = 1.0) -> TripletBatch:
    """Return the minibatch of samples of one shape; `mask_weight` is the weight of L_fm inside masks."""
    editing, reference = (
        _branch_inputs([getattr(sample, clip) for sample in samples], text_length)
        for clip in ("source", "target")
    )
    unreadable = {path: reason for sample in samples for path, reason in sample.unreadable.items()}
    numbers = [sample.number for sample in samples]
    pictures = _picture_inputs([sample.picture for sample in samples if sample.picture is not None])
    weights = _loss_weights([sample.mask for sample in samples], mask_weight)
    return TripletBatch(editing, reference, numbers, unreadable, pictures, loss_weights=weights)


def _loss_weights(masks: Sequence[Tensor | None], inside: float) -> Float[Tensor, "b 1 f y x"] | None:
    """Return `inside` in masks and 1 elsewhere; 1 everywhere for samples without a mask."""
    known = [mask for mask in masks if mask is not None]
    if not known:
        return None
    weights = [torch.ones(known[0].shape) if m is None else torch.where(m, inside, 1.0) for m in masks]
    return torch.stack(weights)[:, None]


def _picture_inputs(pictures: Sequence[tuple[Tensor, Picture]]) -> PictureInputs | None:
    """Return the reference images of a batch. Raises UserError if the multimodal LLM's differ in size."""
    if not pictures:
        return None
    pixels, frames = zip(*pictures, strict=True)
    if len({frame.shape for frame in frames}) > 1:
        raise UserError(
            "batch_size: reference images of different sizes cannot be in one batch: raise `accumulation` "
            "until each process gets one clip at a time"
        )
    return PictureInputs(torch.stack(pixels), frames)


def _branch_inputs(samples: list[BranchSample], text_length: int) -> BranchInputs:
    clips, latents = (
        torch.stack(tensors) if tensors else None
        for tensors in (
            [sample.clip for sample in samples if sample.clip is not None],
            [sample.latents for sample in samples if sample.latents is not None],
        )
    )
    states = [sample.text_states for sample in samples if sample.text_states is not None]
    padded = pad_text_states(states, text_length) if states else None
    return BranchInputs(clips, [s.frames for s in samples], [s.text for s in samples], latents, padded)
