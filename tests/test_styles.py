"""Styles: exact functions of the pixels, at any size; their names in instructions."""

import re

import numpy as np
import pytest
from PIL import Image

from rvedit.io.errors import UserError
from rvedit.playground import grammar
from rvedit.playground.styles import PHOTOMETRIC, stylize
from rvedit.playground.world import render, sample_triplet

# (200, 100, 60), whose luma is 0.299 * 200 + 0.587 * 100 + 0.114 * 60 = 125.34, computed by hand.
EXPECTED = {
    "black and white": (125, 125, 125),
    "sepia": (152, 115, 75),  # 125.34 * (1.05, 0.85, 0.6) + (20, 8, 0)
    "night": (48, 36, 58),
    "sunset": (230, 73, 31),
    "inverted": (55, 155, 195),
    "warm": (230, 102, 45),
    "cold": (150, 97, 78),
    "vintage": (178, 118, 91),  # (162.67, 112.67, 92.67) * (0.85, 0.78, 0.62) + (40, 30, 34)
    "faded": (188, 149, 134),  # (177.602, 107.602, 79.602) * 0.55 + 90
    "high contrast": (243, 83, 19),
    "brighter": (255, 152, 96),
    "darker": (110, 55, 33),
    "more colorful": (255, 80, 8),  # 125.34 + 1.8 * (74.66, -25.34, -65.34)
    "less colorful": (151, 116, 102),
    "posterized": (255, 85, 0),
}


def clip(num_frames=2, height=37, width=53, realism=1.0):
    return render(sample_triplet(0, 3, realism=realism).source, num_frames, height, width)


def test_every_style_has_a_function_and_the_photometric_ones_an_expected_color():
    assert set(EXPECTED) == set(PHOTOMETRIC) < set(grammar.STYLES)
    assert set(grammar.CLASSIC_STYLES) < set(grammar.STYLES)
    with pytest.raises(UserError, match=f"choose one of {', '.join(PHOTOMETRIC)}, pixel art"):
        stylize(clip(), "cubist")


@pytest.mark.parametrize("style", PHOTOMETRIC)
def test_photometric_styles_map_colors_to_colors(style):
    color = np.full((1, 1, 1, 3), (200, 100, 60), np.uint8)
    assert tuple(stylize(color, style).ravel()) == EXPECTED[style]
    frames = np.random.default_rng(1).integers(0, 256, (4, 100, 100, 3), np.uint8)
    shuffled = np.random.default_rng(0).permutation(frames.reshape(-1, 3))
    expected = np.random.default_rng(0).permutation(stylize(frames, style).reshape(-1, 3))
    assert np.array_equal(stylize(shuffled.reshape(frames.shape), style).reshape(-1, 3), expected)


@pytest.mark.parametrize("style", grammar.STYLES)
def test_styles_change_every_part_and_keep_the_shape(style):
    for realism in (0.0, 1.0):
        frames = clip(realism=realism)
        styled = stylize(frames, style)
        assert styled.shape == frames.shape
        assert styled.dtype == np.uint8
        assert np.abs(styled.astype(int) - frames).mean() > 4


@pytest.mark.parametrize("style", grammar.STYLES)
def test_styles_continue_where_a_clip_ended(style):
    frames = clip(5)
    assert np.array_equal(stylize(frames, style)[3:], stylize(frames[3:], style, first_frame=3))


@pytest.mark.parametrize("style", ["pencil sketch", "blurred", "foggy", "snowy", "rainy"])
def test_styles_look_the_same_at_every_size(style):
    frames = clip(1, 96, 128)
    large = np.stack([np.asarray(Image.fromarray(f).resize((512, 384))) for f in frames])
    small = np.asarray(Image.fromarray(stylize(large, style)[0]).reduce(4))
    same, other = (np.abs(small.astype(int) - each).mean() for each in (stylize(frames, style)[0], frames[0]))
    assert same < 6
    assert same < 0.3 * other


def test_snow_and_rain_fall_and_the_rest_stays():
    still = np.repeat(clip(1, 64, 64), 2, axis=0)
    for style in grammar.STYLES:
        first, second = stylize(still, style, first_frame=7)
        assert np.array_equal(first, second) == (style not in ("foggy", "snowy", "rainy")), style


def test_inverting_twice_is_the_identity():
    assert np.array_equal(stylize(stylize(clip(), "inverted"), "inverted"), clip())


def test_all_styles_come_at_realism_above_0_in_phrases_that_fit():
    plain, rich = (
        [sample_triplet(0, i, operations={"style": 1.0}, realism=realism) for i in range(400)]
        for realism in (0.0, 0.5)
    )
    assert {t.target.style for t in plain} == set(grammar.CLASSIC_STYLES)
    assert {t.target.style for t in rich} == set(grammar.STYLES)
    compared = [t.instruction for t in rich if re.search(r"\b(more|less|\w+(?<!pap)er)\b", t.instruction)]
    texts = [text for text in compared if any(name in text for name in grammar.COMPARATIVES)]
    assert len(texts) > 40
    assert not any(" style" in text for text in texts)
    assert {"make it brighter", "give the video a brighter look"} <= set(texts)
