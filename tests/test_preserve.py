"""`preserve`: the source's own pixels, bit for bit, where the model changed nothing."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import edit, random_clip

from rvedit.editing.config import EditConfig
from rvedit.editing.preserve import (
    PreserveMasks,
    change_map,
    composite,
    is_whole_frame_edit,
    soften,
)
from rvedit.io.frames import to_frames
from rvedit.pipelines.checkpoints import find_checkpoint, load_checkpoint


def clips(size=96, frames=5):
    """A model's picture of the source, and its edit: a square that is there in the frames 1 and 2."""
    source = torch.full((3, frames, size, size), 0.1)
    source += 0.02 * torch.randn(source.shape, generator=torch.Generator().manual_seed(0))
    edited = source + 0.03  # the model's own noise, below the threshold
    edited[:, 1:3, 40:56, 40:56] += 0.8
    return edited, source


def mask_of(edited, source):
    return soften(change_map(edited, source))


def test_the_mask_is_1_on_the_change_and_0_far_from_it():
    mask = mask_of(*clips())
    assert mask.shape == (5, 96, 96)
    assert mask[1:3, 42:54, 42:54].min() > 0.99
    assert mask[:, :20].max() == mask[:, 76:].max() == 0
    assert mask.min() == 0
    assert mask.max() <= 1
    border = mask[1, 48, 56:72]
    assert (border.diff() <= 0).all()  # fades outwards
    assert ((border > 0.05) & (border < 0.95)).any()


def test_the_mask_is_smooth_in_time():
    mask = mask_of(*clips(frames=7))
    # The frames before and after see what is to come and what was; then it fades.
    assert mask[:, 48, 48].tolist() == pytest.approx([1, 1, 1, 2 / 3, 1 / 3, 0, 0])
    assert mask[5:].max() == 0


@pytest.mark.parametrize("pieces", [(5, 4), (1, 1, 1, 6), (3, 6), (2, 2, 2, 2, 1)])
def test_the_mask_knows_no_windows(pieces):
    """A change that begins where a window does is faded in before it, and the other way round."""
    edited, source = (to_frames(clip) for clip in clips(frames=9))
    edited[5] = edited[1]

    def given(sizes):
        masks, at, found = PreserveMasks(), 0, []
        for size in sizes:
            found += masks.add(edited[at : at + size], source[at : at + size])
            at += size
        return [*found, *masks.flush()]

    whole, piecewise = given([9]), given(pieces)
    assert [mask[48, 48].item() > 0 for mask in whole] == [True] * 8 + [False]
    for mask, same in zip(whole, piecewise, strict=True):
        torch.testing.assert_close(mask, same)


def test_an_edit_of_the_whole_frame_is_kept_as_it_is():
    """However faint: a style is no pixels' own, and half of it would be worse than none."""
    edited, source = clips()
    assert is_whole_frame_edit(edited + 0.12, source)
    assert not is_whole_frame_edit(edited + 0.04, source)
    edited[..., :40] += 0.4  # of two fifths of the frame: an edit of a part
    assert not is_whole_frame_edit(edited, source)


@pytest.mark.parametrize("scale", [1, 3])
def test_pixels_outside_are_the_sources_at_its_own_size(scale):
    size = 96 * scale
    source, edited = random_clip(1, size, size, seed=1)[0], random_clip(1, size, size, seed=2)[0]
    mask = mask_of(*clips())[1]
    mixed = composite(source, edited, mask)
    assert mixed.dtype == np.uint8
    assert (mixed[: 20 * scale] == source[: 20 * scale]).all()
    inside = slice(44 * scale, 52 * scale)
    assert np.abs(mixed[inside, inside].astype(int) - edited[inside, inside]).max() <= 3
    assert (composite(source, edited, torch.ones(4, 4)) == edited).all()
    assert (composite(source, edited, torch.zeros(4, 4)) == source).all()


@pytest.mark.slow
def test_an_edit_preserves_over_windows_and_odd_sizes(monkeypatch):
    """The whole pipeline: what is outside the mask is bit-exact, and an edit without it is as it was."""
    pipeline = load_checkpoint(find_checkpoint("nano"))
    frames = random_clip(15, 70, 131, seed=3)
    settings = EditConfig(num_inference_steps=1, detail=0)
    monkeypatch.setattr("rvedit.editing.colors.ColorMatch.apply", lambda self, window: window)
    plain = edit(pipeline, frames, "remove the dog", settings)
    monkeypatch.setattr("rvedit.editing.preserve.is_whole_frame_edit", lambda *_: False)
    nothing = lambda edited, source: torch.zeros(edited.shape[1:])  # noqa: E731
    monkeypatch.setattr("rvedit.editing.preserve.change_map", nothing)
    assert (edit(pipeline, frames, "remove the dog", replace(settings, preserve=True)) == frames).all()
    half = lambda edited, source: torch.zeros(edited.shape[1:]).index_fill(1, torch.arange(30), 1.0)  # noqa: E731
    monkeypatch.setattr("rvedit.editing.preserve.change_map", half)
    mixed = edit(pipeline, frames, "remove the dog", replace(settings, preserve=True))
    assert mixed.shape == frames.shape
    rows = [np.abs(mixed[:, r].astype(int) - plain[:, r]).max() for r in (0, 10)]
    assert rows == [0, 0]
    assert (mixed[:, -5:] == frames[:, -5:]).all()
    asked = []
    monkeypatch.setattr("rvedit.editing.preserve.is_whole_frame_edit", lambda *_: asked.append(1) or True)
    assert (edit(pipeline, frames, "remove the dog", replace(settings, preserve=True)) == plain).all()
    assert len(asked) == 1, "the first window decides for all"
