"""Masks: what is outside them is the source, for every editor; where they are is the edit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import edit, make_pipeline, random_clip
from PIL import Image
from test_editors import SMALL, WORDS, save_pipeline

from rvedit.editing.config import EditConfig
from rvedit.editing.long_video import edit_video
from rvedit.editing.mask import border_of, grow, hold_source, model_mask, soft_weights
from rvedit.editing.regions import Box
from rvedit.io.errors import UserError
from rvedit.io.video import write_clip
from rvedit.models.autoencoder import latent_mask
from rvedit.pipelines.baselines import BASELINES
from rvedit.pipelines.loading import load_pipeline


def half(height: int, width: int) -> np.ndarray:
    """White on the left."""
    mask = np.zeros((height, width), bool)
    mask[:, : width // 2] = True
    return mask


def outside(mask: np.ndarray) -> np.ndarray:
    return ~grow(mask, border_of(*mask.shape))


@pytest.fixture(scope="module", params=["rvedit", "lucy", "vace"])
def pipe(request, tiny_tokenizer, tmp_path_factory):
    if request.param == "rvedit":
        return make_pipeline(tiny_tokenizer)
    folder = save_pipeline(tmp_path_factory.mktemp("pipes") / request.param, request.param, tiny_tokenizer)
    return load_pipeline(str(folder))


@pytest.fixture(autouse=True)
def _small_native_formats(monkeypatch):
    for name in BASELINES:
        monkeypatch.setitem(BASELINES, name, replace(BASELINES[name], native=SMALL))


def masked_edit(pipe, clip, mask, **settings):
    words = WORDS["vace"] if type(pipe).__name__ == "WanVACEPipeline" else {}
    settings = {"num_inference_steps": 2, "guidance_scale": 1.0, **words, **settings}
    return edit(pipe, clip, "make the fish orange", mask=mask, **settings)


@pytest.mark.parametrize("detail", [0, 1.0])
def test_outside_the_mask_is_the_source_and_inside_the_edit(pipe, detail):
    """Over several windows, at a size that is not the model's; and frame by frame as the mask moves."""
    clip = random_clip(12, 70, 96)
    mask = np.stack([np.roll(half(70, 96), 3 * n, axis=1) for n in range(12)])
    result = masked_edit(pipe, clip, mask, detail=detail)
    far = np.stack([outside(frame) for frame in mask])
    assert np.array_equal(result[far], clip[far])
    assert (result != clip)[mask].mean() > 0.2, "something was edited"


def test_a_white_mask_is_no_mask_and_a_black_one_is_no_edit(pipe):
    clip = random_clip(6, 40, 56)
    white, plain = (masked_edit(pipe, clip, mask, detail=0) for mask in (np.ones((40, 56), bool), None))
    if type(pipe).__name__ == "RVEDiTPipeline":
        assert np.array_equal(white, plain)
    else:
        assert np.abs(white.astype(int) - plain).mean() < 2, "the same noise; a mask goes to VACE either way"
    assert np.array_equal(masked_edit(pipe, clip, np.zeros((40, 56), bool)), clip)


def test_the_model_is_held_to_the_source_outside(pipe, monkeypatch):
    """Not only the pixels are pasted: the latents that leave the last step are the source's there."""
    seen = []

    def watching(*given):
        callback = hold_source(*given)

        def on_step_end(pipe, step, timestep, tensors):
            changed = callback(pipe, step, timestep, tensors)
            seen.append(
                (float(pipe.scheduler.sigmas[step + 1]), tensors["latents"], changed["latents"], *given)
            )
            return changed

        return on_step_end

    monkeypatch.setattr("rvedit.editing.long_video.hold_source", watching)
    masked_edit(pipe, random_clip(5, 32, 48), half(32, 48))
    assert [sigma > 0 for sigma, *_ in seen] == [True, False]
    for sigma, before, after, source, noise, mask in seen:
        held = (1 - sigma) * source + sigma * noise
        torch.testing.assert_close(after[:, :, ~mask], held[:, :, ~mask])
        assert torch.equal(after[:, :, mask], before[:, :, mask])
        assert not torch.allclose(before[:, :, ~mask], held[:, :, ~mask], atol=1e-2)
        assert mask.any()
        assert not mask.all()


def as_files(folder: Path, mask: np.ndarray) -> dict[str, object]:
    """A mask in all its forms."""
    pixels = np.where(mask, 255, 0).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "mask.png")
    write_clip(folder / "mask.mkv", np.repeat(pixels[None, ..., None], 3, -1).repeat(6, 0), 12)
    return {
        "image file": folder / "mask.png",
        "its name": str(folder / "mask.png"),
        "video file": folder / "mask.mkv",
        "booleans": mask,
        "levels": pixels,
        "floats": mask.astype(np.float32),
        "zeros and ones": mask.astype(np.uint8),
        "integers": mask.astype(np.int64) * 255,
        "box in words": "0%,0%,50%,100%",
        "picture": Image.fromarray(pixels),
        "clip": np.repeat(mask[None], 6, 0),
        "list": [mask] * 6,
        "iterator": iter([mask] * 6),
        "box": Box.parse("0%,0%,50%,100%"),
    }


def test_a_mask_has_many_forms(tiny_pipeline, tmp_path):
    clip, mask = random_clip(6, 40, 56), half(40, 56)
    results = {
        name: masked_edit(tiny_pipeline, iter(clip), form) for name, form in as_files(tmp_path, mask).items()
    }
    for name, result in results.items():
        assert np.array_equal(result, results["booleans"]), name


def test_inverted_and_grown(tiny_pipeline):
    clip, mask = random_clip(3, 40, 56), half(40, 56)
    inverted = masked_edit(tiny_pipeline, clip, mask, invert_mask=True)
    assert np.array_equal(inverted, masked_edit(tiny_pipeline, clip, ~mask))
    grown = masked_edit(tiny_pipeline, clip, mask, grow=7)
    wider = np.zeros_like(mask)
    wider[:, : 28 + 7] = True
    assert np.array_equal(grown, masked_edit(tiny_pipeline, clip, wider))


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (np.ones((40, 50), bool), "`mask` is 50x40 pixels, the video 56x40"),
        (np.ones((4, 40, 56), bool), "`mask` has 4 frames, the video more"),
        (np.ones((8, 40, 56), bool), "`mask` has more frames than the video, 6"),
        (Box.parse("50,0,20,10"), "`region` 50,0,20,10: is not inside the frame of 56x40"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(tiny_pipeline, mask, said):
    with pytest.raises(UserError, match=said):
        masked_edit(tiny_pipeline, random_clip(6, 40, 56), mask)


def test_growing_and_the_soft_border():
    mask = np.zeros((128, 128), bool)
    mask[60:64, 40:44] = True
    grown = grow(mask, 3)
    assert np.array_equal(np.argwhere(grown)[[0, -1]], [[57, 37], [66, 46]])
    assert grown.sum() == 100
    weights = soft_weights(mask)
    assert border_of(128, 128) == 2
    assert weights[60:64, 40:44].min() == 1
    assert weights[torch.from_numpy(~grow(mask, 2))].max() == 0
    assert 0 < weights[62, 45] < 1


@pytest.mark.parametrize("size", [(16, 16), (48, 80), (200, 150)])
def test_no_pixel_of_the_mask_is_lost_at_the_models_size(size):
    """Neither a small one nor one that shows in a single frame: its latent may change."""
    mask = np.zeros((100, 130), bool)
    mask[99, 129] = True
    small = model_mask(mask, *size)
    assert small.shape == size
    assert small[-1, -1]
    assert not small[: size[0] // 2, : size[1] // 2].any()
    frames = np.zeros((9, 32, 32), bool)
    frames[6, 17, 3] = True
    cells = latent_mask(frames, 2, 2)
    assert cells.nonzero().tolist() == [[2, 1, 0]]
    frames[0, 0, 31] = True
    assert latent_mask(frames, 2, 2).nonzero().tolist() == [[0, 0, 1], [2, 1, 0]]


def test_masks_that_are_filled_anew_are_read_anew(tiny_pipeline):
    """One array, changed in place by a generator."""
    clip, masks = random_clip(6, 40, 56), [half(40, 56), ~half(40, 56)] * 3

    def reused():
        buffer = np.zeros((40, 56), bool)
        for mask in masks:
            buffer[:] = mask
            yield buffer

    assert np.array_equal(masked_edit(tiny_pipeline, clip, reused()), masked_edit(tiny_pipeline, clip, masks))


def test_settings_of_a_mask_need_one():
    with pytest.raises(ValueError, match="need a mask"):
        EditConfig(grow=3)
    with pytest.raises(ValueError, match="grow is -1"):
        EditConfig(mask=np.ones((2, 2)), grow=-1)


def test_an_endless_video_can_have_a_still_mask(tiny_pipeline):
    def endless():
        while True:
            yield from random_clip(5)

    frames = edit_video(tiny_pipeline, endless(), "red", mask=half(32, 32), num_inference_steps=1)
    assert next(frames).shape == (32, 32, 3)
