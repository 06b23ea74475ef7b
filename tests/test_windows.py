"""Windows over a long clip: nothing lost, nothing twice, little held."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from rvedit.editing.windows import WindowNoise, WindowPlan, carry_over, pad_frames, split
from rvedit.io.frames import to_model_range
from rvedit.models.autoencoder import StreamDecoder, encode
from rvedit.pipelines.checkpoints import find_checkpoint, load_checkpoint
from rvedit.playground.world import render, sample_triplet

plans = st.integers(1, 6).flatmap(
    lambda groups: st.builds(
        WindowPlan, st.just(4 * groups + 1), st.integers(1, groups).map(lambda shift: 4 * shift)
    )
)


def num_latents(plan: WindowPlan) -> int:
    return 1 + (plan.length - 1) // 4


def numbered(count: int) -> Iterator[np.ndarray]:
    """Frames that carry their number."""
    for number in range(count):
        yield np.full((2, 3, 3), number, np.uint8)


def unmasked(frames: Iterator[np.ndarray]) -> Iterator[tuple[np.ndarray, None]]:
    """Frames that may change everywhere."""
    return ((frame, None) for frame in frames)


@given(count=st.integers(1, 100), plan=plans)
def test_masks_go_with_their_frames(count: int, plan: WindowPlan) -> None:
    pairs = ((frame, np.full((2, 3), frame[0, 0, 0] % 2 == 1)) for frame in numbered(count))
    for window in split(pairs, plan):
        assert window.masks is not None
        assert (window.masks[:, 0, 0] == window.frames[:, 0, 0, 0] % 2).all()
        assert window.masks.shape == (len(window.frames), 2, 3)


@given(count=st.integers(1, 100), plan=plans)
def test_every_frame_comes_out_once_and_in_order(count: int, plan: WindowPlan) -> None:
    emitted = [
        int(frame[0, 0, 0])
        for window in split(unmasked(numbered(count)), plan)
        for frame in window.frames[window.first_new :]
    ]
    assert emitted == list(range(count))


@given(count=st.integers(1, 100), plan=plans)
def test_windows_have_the_plans_length_and_consecutive_frames(count: int, plan: WindowPlan) -> None:
    for number, window in enumerate(split(unmasked(numbered(count)), plan)):
        assert window.index == number
        start = number * plan.stride
        expected = list(range(start, min(start + plan.length, count)))
        assert window.frames[:, 0, 0, 0].tolist() == expected


@given(count=st.integers(1, 40))
def test_short_clips_are_padded_by_their_last_frame(count: int) -> None:
    frames = np.stack(list(numbered(count)))
    padded = pad_frames(frames)
    assert len(padded) % 4 == 1
    assert 0 <= len(padded) - count < 4
    assert (padded[count:] == count - 1).all()
    assert len(pad_frames(frames, 41)) == 41


@given(count=st.integers(1, 100), plan=plans)
def test_count_tells_how_many_windows_there_will_be(count: int, plan: WindowPlan) -> None:
    assert len(list(split(unmasked(numbered(count)), plan))) == plan.count(count)


@given(count=st.integers(1, 60), plan=plans)
def test_at_most_one_window_and_one_frame_are_read_ahead(count: int, plan: WindowPlan) -> None:
    read = 0

    def counting() -> Iterator[np.ndarray]:
        nonlocal read
        for frame in numbered(count):
            read += 1
            yield frame

    for window in split(unmasked(counting()), plan):
        assert read <= window.index * plan.stride + plan.length + 1


def test_no_frames_give_no_windows() -> None:
    assert list(split(unmasked(numbered(0)), WindowPlan(9, 4))) == []


@pytest.mark.parametrize(("length", "stride"), [(8, 4), (9, 3), (9, 0), (9, -4), (9, 12), (1, 4)])
def test_plans_off_the_vaes_grid_are_refused(length: int, stride: int) -> None:
    with pytest.raises(ValueError, match=rf"window of {length} frames every {stride}"):
        WindowPlan(length, stride)


@given(plan=plans, index=st.integers(0, 5))
def test_what_is_carried_over_covers_the_same_frames(plan: WindowPlan, index: int) -> None:
    """Latent j > 0 of a window from frame s covers frames s + 4j - 3 ... s + 4j: labelled by s / 4 + j."""

    def labels(start: int) -> torch.Tensor:
        return torch.arange(num_latents(plan), dtype=torch.float32)[None, None, :, None, None] + start / 4

    current = labels((index + 1) * plan.stride)
    known = carry_over(labels(index * plan.stride), current[:, :, :1], plan)
    assert known.shape[2] == num_latents(plan) - plan.latent_stride
    assert_close(known, current[:, :, : known.shape[2]])


@given(plan=plans, seed=st.integers(0, 2**31))
def test_noise_starts_from_the_seed_and_is_shared_where_windows_overlap(plan: WindowPlan, seed: int) -> None:
    shape = (1, 2, num_latents(plan), 2, 2)
    noise = WindowNoise(plan, seed)
    drawn = [noise.draw(shape) for _ in range(4)]
    assert torch.equal(drawn[0], torch.randn(shape, generator=torch.Generator().manual_seed(seed)))
    for previous, current in pairwise(drawn):
        assert current.shape == shape
        assert torch.equal(current[:, :, : -plan.latent_stride], previous[:, :, plan.latent_stride :])
        assert not torch.equal(current[:, :, -1], previous[:, :, -1])


def test_noise_of_many_windows_is_standard_normal() -> None:
    noise = WindowNoise(WindowPlan(9, 4), 0)
    fresh = torch.cat([noise.draw((1, 16, 3, 16, 16))[:, :, -1] for _ in range(8)])
    assert abs(fresh.mean()) < 0.02
    assert abs(fresh.std() - 1) < 0.02


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_frames_have_a_share_of_their_noise_in_common(share: float) -> None:
    """Over windows too; it is standard normal all the same, and overlaps are shared as without."""
    plan = WindowPlan(9, 4)
    noise = WindowNoise(plan, 0, share)
    windows = [noise.draw((1, 16, 3, 32, 32)) for _ in range(3)]
    frames = torch.cat([windows[0], windows[1][:, :, -1:], windows[2][:, :, -1:]], dim=2)[0]
    correlation = torch.corrcoef(frames.transpose(0, 1).flatten(1))
    expected = torch.full((5, 5), share).fill_diagonal_(1.0)
    assert_close(correlation, expected, atol=0.03, rtol=0)
    assert abs(frames.std() - 1) < 0.02
    assert torch.equal(windows[1][:, :, :2], windows[0][:, :, 1:])


@pytest.mark.parametrize(
    ("plan", "seams", "borders"),
    [
        (WindowPlan(9, 4), [8, 12, 16], [0, 4]),
        (WindowPlan(21, 16), [20, 36], [0, 4, 8, 12, 16, 24, 28, 32]),
    ],
)
def test_seams_that_the_benchmark_measures_are_where_windows_meet(plan, seams, borders, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    found = importlib.import_module("nano_options").seams_and_borders(plan, seams[-1] + 2)
    assert [list(indices) for indices in found] == [seams, borders]


@pytest.mark.slow
def test_nanos_vae_draws_no_seam_where_its_groups_of_frames_meet() -> None:
    """Windows begin there, too; their seams are measured in benchmarks/nano_options.py."""
    vae = load_checkpoint(find_checkpoint("nano")).vae
    borders = np.arange(24) % 4 == 0
    across, inside = [], []
    for index in range(8):
        clip = render(sample_triplet(20, index, "test").target, 25, 128, 128)
        with torch.no_grad():
            picture = StreamDecoder(vae).frames(encode(vae, to_model_range(clip)[None]))
        change = np.abs(np.diff(picture.astype(float), axis=0)).mean(axis=(1, 2, 3))
        across.append(change[4:][borders[4:]].mean())
        inside.append(change[~borders].mean())
    assert np.mean(across) < 1.1 * np.mean(inside)
