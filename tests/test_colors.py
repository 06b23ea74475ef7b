"""Colors do not drift over windows, and match at the border of a mask."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import random_clip

from rvedit.editing.colors import ColorMatch, match_border
from rvedit.editing.config import EditConfig
from rvedit.editing.finish import finish
from rvedit.editing.windows import EditedFrames
from rvedit.io.frames import to_model_range

SIZE = 64


def window(gain=1.0, offset=0.0, masks=None, seed=0):
    """Four frames; the edit is a red square, and the source's colors with a gain and an offset in levels."""
    source = 40 + random_clip(4, SIZE, SIZE, seed) // 2
    edited = np.clip(gain * source.astype(np.float32) + offset, 0, 255).round().astype(np.uint8)
    edited[:, 8:24, 8:24] = (220, 30, 30)
    return EditedFrames(edited, source, source, masks)


def differences(edited, source):
    """Differences in mean and spread away from the square."""
    away = np.s_[:, 32:]
    return [abs(float(f(edited[away])) - float(f(source[away]))) for f in (np.mean, np.std)]


def drifting(count=10):
    return [window(1 - 0.01 * n, 1.5 * n, seed=n) for n in range(count)]


@pytest.mark.parametrize("detail", [1.0, 0.5])
def test_ten_windows_end_as_they_begin(detail):
    """Through to the output: without the correction the last window is four levels off."""
    windows = drifting()
    assert differences(windows[9].edited, windows[9].source)[0] > 3
    originals = [frame for each in windows for frame in each.source]
    output = np.stack(list(finish(windows, originals, EditConfig(detail=detail), 8)))
    for number in (4, 9):
        frames = slice(4 * number, 4 * number + 4)
        mean, spread = differences(output[frames], windows[number].source)
        assert mean < 1
        assert spread < 1
    square = output[:, 12:20, 12:20].astype(int)
    assert np.abs(square - (220, 30, 30)).max() < 25, "the edit is there to the end"


def test_a_correction_takes_off_what_was_added():
    match = ColorMatch()
    for each in drifting():
        corrected = match.apply(each)
        mean, spread = differences(corrected.edited, each.source)
        assert mean < 0.6  # half a level is lost by rounding
        assert spread < 0.6


def test_what_the_first_window_does_to_colors_is_the_edit():
    """A little brighter is no drift: it stays, and the first window is not touched at all."""
    match = ColorMatch()
    first = window(offset=8)
    assert np.array_equal(match.apply(first).edited, first.edited)
    for number in range(1, 6):
        corrected = match.apply(window(offset=8 + number, seed=number))
        assert differences(corrected.edited, corrected.source)[0] == pytest.approx(8, abs=0.6)


def test_where_nothing_is_left_alone_nothing_is_corrected():
    match = ColorMatch()
    for number in range(3):
        night = window(0.3, 3.0 * number, seed=number)
        assert np.array_equal(match.apply(night).edited, night.edited)


def test_colors_are_compared_inside_the_mask():
    """Outside, the latents are the source's, and do not drift."""
    masks = np.zeros((4, SIZE, SIZE), bool)
    masks[:, 32:] = True
    match = ColorMatch()
    for number in range(6):
        each = window(offset=1.5 * number, masks=masks, seed=number)
        each.edited[:, :32] = each.source[:, :32]
        corrected = match.apply(each)
        assert differences(corrected.edited, each.source)[0] < 0.6


@pytest.mark.parametrize(("levels", "at_the_border"), [(5, 0.8), (-5, 0.8), (60, 60), (-60, 60)])
def test_a_small_difference_fades_at_the_border_and_a_large_one_stays(levels, at_the_border):
    source = np.full((1, 128, 128, 3), 128, np.uint8)
    edited = (source + np.array(levels, np.int16)).astype(np.uint8)
    mask = torch.zeros(1, 128, 128, dtype=torch.bool)
    mask[:, :, 64:] = True
    clips = to_model_range(edited), to_model_range(source)
    corrected = match_border(*clips, mask)
    offset = (corrected - clips[1])[0, 0, 64] * 127.5
    assert abs(float(offset[64])) == pytest.approx(at_the_border, abs=0.8)
    assert float(offset[127]) == pytest.approx(levels, abs=0.01), "far inside nothing changes"
    inside = offset[64:].abs()
    assert (inside.diff() >= -1e-3).all(), "it fades towards the border"
