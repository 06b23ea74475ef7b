"""The measures of an edit, by hand."""

import numpy as np
import pytest

from rvedit.evaluation.measures import edit_gain, flicker, preservation


@pytest.fixture
def triplet():
    source = np.zeros((2, 4, 4, 3), np.uint8)
    target = source.copy()
    target[:, :2] = 200
    region = np.zeros(source.shape[:3], bool)
    region[:, :2] = True
    return source, target, region


def test_gain_is_one_for_the_target_and_zero_for_the_source(triplet):
    source, target, region = triplet
    assert edit_gain(source, target, target, region) == 1
    assert edit_gain(source, source, target, region) == 0


def test_gain_of_half_the_way_is_three_quarters(triplet):
    source, target, region = triplet
    assert edit_gain(source, target // 2, target, region) == pytest.approx(0.75)


def test_gain_of_the_wrong_edit_is_negative():
    source, target = np.full((1, 2, 2, 3), 100, np.uint8), np.full((1, 2, 2, 3), 150, np.uint8)
    everywhere = np.ones((1, 2, 2), bool)
    assert edit_gain(source, np.zeros_like(source), target, everywhere) == pytest.approx(1 - 9)


def test_preservation_looks_outside_alone(triplet):
    _, target, region = triplet
    output = target.copy()
    output[:, :2] = 7  # inside: not counted
    assert preservation(output, target, region) == pytest.approx(60)
    output[:, 2:] = 51  # a fifth of the range: 20 log10(5) dB
    assert preservation(output, target, region) == pytest.approx(13.979, abs=1e-3)
    assert preservation(output, target, np.ones_like(region)) is None


def test_flicker_of_a_blinking_clip():
    clip = np.zeros((3, 2, 2, 3), np.uint8)
    clip[1] = 255
    assert flicker(clip) == 1
    assert flicker(clip[:1]) == 0
    assert flicker(np.full((5, 2, 2, 3), 9, np.uint8)) == 0
