"""Detail transfer: the source's own detail in the colours of the edit, over a stream of frames."""

import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import torch
from conftest import edit, random_clip

from rvedit.editing import detail
from rvedit.editing.config import EditConfig
from rvedit.editing.detail import ColorMap, DetailTransfer, apply_map, has_own_texture
from rvedit.editing.finish import finish, read_twice
from rvedit.editing.long_video import edit_video
from rvedit.editing.windows import EditedFrames
from rvedit.evaluation.measures import change_error, ssim
from rvedit.io.frames import resize_frames
from rvedit.pipelines.loading import load_pipeline

CELL = 4
SMALL, LARGE = (48, 64), (192, 256)
MATRIX = np.array([[0.3, 0.2, 0.0], [0.1, 0.5, 0.1], [0.0, 0.1, 0.4]])
OFFSET = np.array([30.0, 10.0, 50.0])


def footage(frames=5, size=LARGE, seed=0):
    """Blobs of all sizes that move, with fine grain: something a small VAE cannot draw."""
    rng = np.random.default_rng(seed)
    height, width = size
    clip = np.zeros((frames, *size, 3))
    for scale in (4, 16, 64):
        coarse = rng.uniform(0, 1, (1, height // scale + 2, width // scale + 2, 3)) * 255
        large = resize_frames(coarse.astype(np.uint8), height + frames, width + frames)[0]
        for index in range(frames):
            clip[index] += large[index : index + height, index : index + width] / 3
    return clip.astype(np.uint8)


def transferred(edited, reconstructed, source, cell=CELL, **settings):
    window = EditedFrames(edited, reconstructed, resize_frames(source, *edited.shape[1:3]))
    return np.stack(list(finish([window], source, EditConfig(**settings), cell)))


def blurred(frames):
    """As a VAE draws it."""
    height, width = frames.shape[1:3]
    return resize_frames(resize_frames(frames, height // 4, width // 4), height, width)


def recolored(frames):
    return np.clip(frames @ MATRIX.T + OFFSET + 0.5, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def source():
    return footage()


@pytest.fixture(scope="module")
def reconstructed(source):
    return resize_frames(source, *SMALL)


def test_an_edit_that_changes_nothing_gives_the_source(source, reconstructed):
    result = transferred(reconstructed, reconstructed, source)
    assert np.abs(result.astype(int) - source).max() <= 1


def test_a_change_of_colors_is_the_same_change_of_the_source(source, reconstructed):
    """E = M R + b gives M S + b; E itself is rounded to 8 bits."""
    result = transferred(recolored(reconstructed), reconstructed, source)
    assert np.abs(result.astype(int) - recolored(source)).mean() < 0.6
    assert np.abs(result.astype(int) - recolored(source)).max() <= 4
    plain = resize_frames(recolored(reconstructed), *LARGE)
    assert np.abs(plain.astype(int) - recolored(source)).mean() > 2


def test_colors_are_changed_where_the_reconstruction_is_flat(source):
    """There the fit over the whole frame says how; without a picture at all, E itself is shown."""
    flat = resize_frames(source, *SMALL)
    flat[:, :, :32] = 128
    result = transferred(recolored(flat), flat, source).astype(int)
    inside = np.s_[:, 40:150, 20:90]
    expected = recolored(source)[inside].astype(int)
    assert np.corrcoef(result[inside].ravel(), expected.ravel())[0, 1] > 0.95
    everywhere = np.full_like(flat, 128)
    blank = transferred(np.full_like(flat, 70), everywhere, source)
    assert np.abs(blank.astype(int) - 70).max() <= 1


def test_an_edit_that_the_source_does_not_explain_is_left_as_it_is(source, reconstructed):
    unrelated = resize_frames(footage(seed=7)[:, ::-1, ::-1], *SMALL)
    plain = resize_frames(unrelated, *LARGE).astype(int)
    result = transferred(unrelated, reconstructed, source, detail=1)
    mine, theirs = (np.abs(result - other.astype(int)).mean() for other in (plain, source))
    assert mine < 0.2 * theirs
    # What is far from everything in R stays exactly: no outline of the source shows.
    assert np.array_equal(transferred(unrelated, reconstructed, source), plain), "by `auto` nothing is given"


def test_detail_that_the_vae_lost_comes_back_at_the_models_own_size(reconstructed):
    sharp = footage(size=SMALL)
    soft = blurred(sharp)
    result = transferred(recolored(soft), soft, sharp)
    assert ssim(result, recolored(sharp)) > 0.98 > 0.9 > ssim(recolored(soft), recolored(sharp))


def test_something_new_is_shown_and_its_surroundings_are_the_sources():
    source = footage(3, (384, 512))
    reconstructed = resize_frames(source, 96, 128)
    edited = reconstructed.copy()
    edited[:, 8:24, 8:24] = (250, 60, 40)
    result = transferred(edited, reconstructed, source).astype(int)
    assert np.abs(result[:, 38:90, 38:90] - (250, 60, 40)).mean() < 2
    assert np.abs(result[:, :, 300:] - source[:, :, 300:]).max() <= 1
    plain = resize_frames(edited, 384, 512).astype(int)
    assert np.abs(plain[:, :, 300:] - source[:, :, 300:]).max() > 20


def test_the_outline_of_what_was_removed_does_not_show():
    """E is flat but for a trace of the old thing, as a model leaves one."""
    source = footage()
    source[:, 60:130, 80:170] = (20, 200, 40)
    small = resize_frames(source, *SMALL)
    edited = resize_frames(footage(), *SMALL)
    edited = (0.95 * edited + 0.05 * small).astype(np.uint8)
    result = transferred(edited, small, source, detail=1).astype(int)
    plain = resize_frames(edited, *LARGE).astype(int)
    outline = np.s_[:, 70:120, 90:160]
    assert np.abs(result[outline] - plain[outline]).mean() < 4


def test_strength_goes_from_the_plain_edit_to_the_whole_transfer(source, reconstructed):
    edited = recolored(reconstructed)
    plain, half, whole = (transferred(edited, reconstructed, source, detail=d) for d in (0, 0.5, 1))
    assert np.array_equal(plain, resize_frames(edited, *LARGE))
    assert np.abs(half - (plain.astype(float) + whole) / 2).max() <= 2
    for wrong in (-0.1, 1.5):
        with pytest.raises(ValueError, match="detail is"):
            EditConfig(detail=wrong)


def pixelated(frames, block=8):
    coarse = resize_frames(frames, frames.shape[1] // block, frames.shape[2] // block)
    return (coarse.repeat(block, axis=1).repeat(block, axis=2) // 64) * 64


def test_a_texture_of_the_edits_own_is_left_alone(source, reconstructed):
    art = pixelated(reconstructed)
    assert has_own_texture(art, reconstructed, CELL)
    assert not has_own_texture(recolored(reconstructed), reconstructed, CELL)
    assert not has_own_texture(np.full_like(art, 90), reconstructed, CELL), "flat: no texture at all"
    assert np.array_equal(transferred(art, reconstructed, source), resize_frames(art, *LARGE))


@pytest.mark.parametrize("sizes", [(9, 21), (1,) * 30, (13, 4, 13), (30,)])
def test_windows_join_without_a_seam(sizes):
    """What comes out depends on the frames and not on how they were cut."""
    source = footage(30)
    small = resize_frames(source, *SMALL)
    edited = recolored(small)
    edited[10:20, 8:20, 8:20] = 255

    def windows(cuts):
        at = 0
        for size in cuts:
            part = slice(at, at + size)
            yield EditedFrames(edited[part], small[part], small[part])
            at += size

    settings = EditConfig(preserve=True)
    cut = np.stack(list(finish(windows(sizes), source, settings, CELL)))
    whole = np.stack(list(finish(windows([30]), source, settings, CELL)))
    assert np.array_equal(cut, whole)


def test_flicker_of_the_edit_is_not_shown(source):
    """A style whose brightness jumps from frame to frame, on a clip that stands still."""
    still = np.repeat(source[:1], 25, axis=0)
    small = blurred(resize_frames(still, *SMALL))
    jumps = np.random.default_rng(0).integers(-12, 13, (25, 1, 1, 1))
    edited = np.clip(recolored(small).astype(int) + jumps, 0, 255).astype(np.uint8)
    target = recolored(still)
    result = transferred(edited, small, still)
    assert change_error(result, target) < 0.25 * change_error(resize_frames(edited, *LARGE), target)


@pytest.mark.parametrize("size", [(95, 131), (48, 64), (31, 200), (20, 30)])
def test_bands_are_as_the_whole_frame(size):
    torch.manual_seed(0)
    color_map = ColorMap(torch.randn(3, 3, *SMALL), torch.randn(3, *SMALL))
    frame = random_clip(1, *size)[0]
    whole = apply_map(color_map, frame, rows=10**6)
    for rows in (1, 7):
        assert np.array_equal(apply_map(color_map, frame, rows), whole)
    channels = torch.cat([color_map.matrix.flatten(0, 1), color_map.offset])[None]
    large = torch.nn.functional.interpolate(channels, size, mode="bicubic", antialias=True)[0]
    pixels = torch.from_numpy(frame).permute(2, 0, 1) / 255
    expected = torch.einsum("ijhw,jhw->ihw", large[:9].view(3, 3, *size), pixels) + large[9:]
    difference = (expected.clamp(0, 1) * 255).permute(1, 2, 0) - torch.from_numpy(whole)
    assert difference.abs().max() < 0.51


def test_memory_does_not_grow_with_the_frame():
    """Of a frame's 60 MB of coefficients at its own size, a band is held."""
    color_map = ColorMap(torch.eye(3)[:, :, None, None].expand(3, 3, *SMALL), torch.zeros(3, *SMALL))
    frame = np.zeros((1080, 1200, 3), np.uint8)
    assert 12 * 4 * frame[..., 0].size > 60e6
    sizes = []
    original = detail._resize

    def watched(*arguments):
        result = original(*arguments)
        sizes.append(result.numel() * 4)
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detail, "_resize", watched)
        apply_map(color_map, frame, rows=50)
    assert max(sizes) < 5e6


@pytest.mark.parametrize("preserve", [False, True])
def test_color_maps_are_made_one_at_a_time(monkeypatch, preserve):
    """A window of the 5B would hold gigabytes of them."""
    source = footage(20)
    small = resize_frames(source, *SMALL)
    made = []
    original = DetailTransfer._map
    monkeypatch.setattr(DetailTransfer, "_map", lambda *given: made.append(1) or original(*given))
    settings = EditConfig(preserve=preserve)
    windows = [EditedFrames(recolored(small), small, small)]
    for count, _ in enumerate(finish(windows, source, settings, CELL), start=1):
        assert len(made) == count
    assert count == 20


def test_originals_are_read_again_and_not_held():
    class Clip:
        readings = 0

        def __iter__(self):
            Clip.readings += 1
            yield from range(1000)

    first, second = read_twice(Clip())
    assert list(first) == list(second) == list(range(1000))
    assert Clip.readings == 2
    once = iter(range(5))
    first, second = read_twice(once)
    assert (list(first), list(second)) == ([0, 1, 2, 3, 4],) * 2


@pytest.mark.slow
def test_frames_at_full_size_are_not_held(tiny_pipeline):
    """A window of 9 and 12 frames that wait would be 21 MB."""

    class Clip:
        def __iter__(self):
            for index in range(40):
                yield np.full((600, 600, 3), index, np.uint8)

    tracemalloc.start()
    try:
        for _ in edit_video(tiny_pipeline, Clip(), "make it red", num_inference_steps=1):
            pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 9 * 600 * 600 * 3


@pytest.mark.slow
def test_nano_gives_back_a_picture_as_sharp_as_it_was():
    """The embedded model, a picture eight times its size: SSIM to the exact target of a style."""
    from rvedit.playground.styles import stylize

    pipeline = load_pipeline("nano")
    clip = footage(2, (512, 640))
    target = stylize(clip, "sepia")
    edits = [edit(pipeline, clip, "make it sepia", EditConfig(detail=d)) for d in (0, "auto")]
    plain, sharp = (ssim(edit, target) for edit in edits)
    assert sharp > 0.75 > 0.6 > plain


@pytest.mark.parametrize("value", ["much", "2", "-1", "nan"])
def test_a_wrong_detail_is_one_line(value, tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "rvedit_cli", "edit", "in.mp4", "make it red", "--detail", value],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 2
    assert f"--detail {value}: give auto, off, or a number from 0 to 1" in run.stderr


def test_transfers_wait_for_as_many_frames_as_they_read():
    transfer = DetailTransfer(CELL)
    frame = resize_frames(footage(1), *SMALL)
    counts = [len(list(transfer.add(frame, frame, frame))) for _ in range(15)]
    assert counts == [0] * 12 + [1] * 3
    assert len(list(transfer.flush())) == 12
