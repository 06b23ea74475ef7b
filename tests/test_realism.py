"""Realism: a dial from flat drawings to the statistics of photographs; edits stay exact."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from rvedit.playground import backdrop, look, realism, textures
from rvedit.playground.degrade import degrade
from rvedit.playground.drawing import center
from rvedit.playground.world import render, sample_triplet
from rvedit.training.data import PlaygroundSamples, sample_realism
from rvedit.training.recipe import Recipe
from rvedit.training.vae import ClipCrops

LOCAL = {"swap": 1.0, "recolor": 1.0, "remove": 1.0, "add": 1.0}


def luma(scene, size=128):
    return render(scene, 1, size, size)[0] @ np.array([0.299, 0.587, 0.114])


def scenes(dial, count=24):
    return [sample_triplet(5, i, operations={"swap": 1.0}, realism=dial).source for i in range(count)]


def spectrum_slope(pictures, lowest=3, highest=48):
    """Return the exponent of the mean power spectrum over frequencies in cycles per frame."""
    size = len(pictures[0])
    window = np.outer(np.hanning(size), np.hanning(size))
    power = sum(np.abs(np.fft.fft2((picture - picture.mean()) * window)) ** 2 for picture in pictures)
    axis = np.fft.fftfreq(size) * size
    ring = np.hypot(axis[:, None], axis).round().astype(int).ravel()
    radial = np.bincount(ring, power.ravel()) / np.bincount(ring)
    frequencies = np.arange(lowest, highest + 1)
    return np.polyfit(np.log(frequencies), np.log(radial[frequencies]), 1)[0]


def test_the_spectrum_is_that_of_photographs():
    flat, rich = (spectrum_slope([luma(scene) for scene in scenes(dial)]) for dial in (0.0, 1.0))
    assert flat < -2.8, "flat shapes alone"
    assert -2.45 < rich < -1.9


def test_gradients_are_heavy_tailed():
    changes = np.concatenate([np.diff(np.log(luma(scene) + 5)).ravel() for scene in scenes(1.0)])
    changes -= changes.mean()
    assert (changes**4).mean() / (changes**2).mean() ** 2 > 8  # 3 for a Gaussian, 6 for a Laplacian
    assert np.mean(np.abs(changes) < 1e-2) < 0.22, "surfaces have textures"


def test_realism_leaves_scenes_and_instructions_as_they_are():
    for index in range(40):
        plain, rich = (sample_triplet(2, index, operations=LOCAL, realism=dial) for dial in (0.0, 0.7))
        assert rich.instruction == plain.instruction
        assert rich.source.realism == rich.target.realism == 0.7
        assert rich.source.look == rich.target.look
        for a, b in ((plain.source, rich.source), (plain.target, rich.target)):
            assert replace(b, realism=0.0, look=0) == a
    assert sample_triplet(2, 0, realism=0.7).source.look != sample_triplet(2, 1, realism=0.7).source.look


def test_equal_scenes_give_equal_frames_without_caches_too():
    scene = sample_triplet(3, 17, realism=1.0).source
    first = render(scene, 3, 48, 64, first_frame=9)
    for cached in (
        backdrop.draw_backdrop,
        realism.draw_sprite,
        realism._draw_view,
        look.sample_look,
        textures.fractal_fields,
    ):
        cached.cache_clear()
    assert np.array_equal(render(scene, 3, 48, 64, first_frame=9), first)
    assert not np.array_equal(render(replace(scene, look=scene.look + 1), 3, 48, 64, 9), first)


def test_frames_continue_where_a_clip_ended():
    for index in range(4):
        scene = replace(sample_triplet(0, index, realism=0.8).source, style=(None, "snowy")[index % 2])
        whole = render(scene, 6, 48, 56, first_frame=200)
        assert np.array_equal(whole[3:], render(scene, 3, 48, 56, first_frame=203))
        assert not np.array_equal(whole[0], whole[1])


def test_source_and_target_are_equal_outside_the_edit():
    size, margin = 96, 3
    for index in range(24):
        triplet = sample_triplet(1, index, operations=LOCAL, realism=1.0)
        source, target = (render(scene, 3, size, size, 40) for scene in (triplet.source, triplet.target))
        edited = set(triplet.source.things) ^ set(triplet.target.things)
        allowed = np.zeros(source.shape[:3], bool)
        light = look.sample_look(triplet.source.look)
        for i in range(3):
            zoom, *shift = light.camera(triplet.source, 40 + i)
            for thing in edited:
                x, y = ((center(thing, 40 + i) - 0.5 - shift) * zoom + 0.5) * size
                reach = 1.5 * thing.radius * size * zoom + margin
                rows, columns = (np.abs(np.arange(size) - a) < reach for a in (y, x))
                allowed[i] |= rows[:, None] & columns
        different = (source != target).any(axis=-1)
        assert different.any()
        assert not (different & ~allowed).any()
        assert not allowed.all()


def test_things_have_shadows_that_grow_with_realism():
    dark = []
    for dial in (0.25, 0.5, 1.0):
        added = []
        for index in range(6):
            triplet = sample_triplet(4, index, operations={"add": 1.0}, realism=dial)
            before, after = (luma(scene, 64) for scene in (triplet.source, triplet.target))
            thing = triplet.target.things[-1]
            row, column = int((thing.y + 0.97 * thing.radius) * 64), int(thing.x * 64)
            added.append((after - before)[row + 1, column - 4 : column + 5].mean() / before.mean())
        dark.append(np.mean(added))
    assert 0 > dark[0] > dark[1] > dark[2]


def test_effects_grow_with_the_dial_and_begin_at_nothing():
    flat = [render(scene, 1, 64, 64) for scene in scenes(0.0, 8)]
    distances = []
    for dial in (0.01, 0.1, 0.25, 0.5, 0.75, 1.0):
        rich = [render(scene, 1, 64, 64) for scene in scenes(dial, 8)]
        distances.append(np.mean([np.abs(a.astype(int) - b).mean() for a, b in zip(rich, flat, strict=True)]))
    assert distances[0] < 2
    assert all(a * 1.1 < b for a, b in itertools.pairwise(distances))


def test_the_camera_and_the_light_move_slowly():
    scene = replace(scenes(1.0, 1)[0], things=(), pan=0.0)
    near, far = (
        np.mean(
            [
                np.abs(render(s, 1, 64, 64, 10 + step).astype(int) - render(s, 1, 64, 64, 10)).mean()
                for s in (replace(scene, look=number) for number in range(8))
            ]
        )
        for step in (1, 20)
    )
    assert 0 < near < 6
    assert far > 1.5 * near
    for number in range(8):
        path = np.array([look.sample_look(number).camera(scene, frame) for frame in range(300)])
        assert (path[:, 0] >= 1).all(), "the view stays inside the backdrop"
        assert (np.ptp(path, axis=0) > 1e-4).all()
        assert np.abs(path[:, 1:]).max() < backdrop.MARGIN
        assert np.abs(np.diff(path, axis=0)).max() < 0.01
        assert look.sample_look(number).camera(replace(scene, realism=0.0), 7) == (1, 0, 0)


def test_a_long_pan_returns_to_where_it_began():
    """The backdrop repeats after 4/3 of the frame: 200 frames at a speed of 0.01 hills' wavelengths."""
    still = look.sample_look(1)
    scene = replace(scenes(1.0, 1)[0], things=(), pan=0.01, look=1)
    views = [realism._draw_view(scene, frame, 48, 48) for frame in (0, 100, 200)]
    assert still.waves[0, 0] > 0  # the camera moves a little meanwhile
    ends, middle = (np.abs(views[0].astype(int) - view).mean() for view in (views[2], views[1]))
    assert ends < 0.7 * middle


def test_degrading_grows_with_strength_and_differs_between_frames():
    frames = np.repeat(render(scenes(1.0, 1)[0], 1, 64, 64), 2, axis=0)
    assert np.array_equal(degrade(frames, np.random.default_rng(0), 0.0), frames)
    errors = []
    for strength in (0.1, 0.4, 1.0):
        noisy = degrade(frames, np.random.default_rng(0), strength)
        assert noisy.shape == frames.shape
        assert noisy.dtype == np.uint8
        assert np.array_equal(noisy, degrade(frames, np.random.default_rng(0), strength))
        assert not np.array_equal(noisy[0], noisy[1])
        errors.append(np.abs(noisy.astype(int) - frames).mean())
    assert errors[0] < errors[1] < errors[2] < 16


def recipe(**data):
    shape = {"height": 32, "width": 32, "num_frames": 5}
    return Recipe.model_validate({"task": "vae", "model": {"preset": "nano"}, "data": {**shape, **data}})


def test_a_share_of_the_samples_is_flat():
    for share, low, high in ((0.0, 0, 0), (0.5, 35, 65), (1.0, 100, 100)):
        data = recipe(realism=0.8, flat_share=share).data
        drawn = [sample_realism(data, number)[0] for number in range(100)]
        assert low <= drawn.count(0.0) <= high
        others = [sample_realism(recipe(realism=0.8).data, number)[0] for number in range(100)]
        assert all(value in (0.0, other) for value, other in zip(drawn, others, strict=True))


def test_training_samples_draw_their_realism_and_degrade_only_the_source():
    samples = {
        name: PlaygroundSamples(recipe(**data), lambda clip, has_reference: clip)
        for name, data in {
            "plain": {},
            "rich": {"realism": 0.8},
            "degraded": {"realism": 0.8, "degrade": 1.0},
        }.items()
    }
    for number in range(4):
        source, target = ((samples[name][number].source.clip, samples[name][number].target.clip) for name in
                          ("rich", "degraded"))  # fmt: skip
        assert not np.array_equal(source[0], target[0]), "the source is degraded"
        assert np.array_equal(source[1], target[1]), "the target is not"
        assert not np.array_equal(source[1], samples["plain"][number].target.clip)
    dials = [sample_realism(samples["rich"].data, number)[0] for number in range(200)]
    assert 0 < min(dials) < 0.1
    assert 0.7 < max(dials) < 0.8
    assert sample_realism(samples["plain"].data, 3)[0] == 0


def test_the_vae_is_trained_on_clean_targets_and_degraded_sources():
    clean, noisy = (ClipCrops(recipe(realism=1.0, degrade=value).data, 1) for value in (0.0, 1.0))
    same = [np.array_equal(clean[number][1], noisy[number][1]) for number in range(24)]
    assert 6 < sum(same) < 22  # 60% are targets


@pytest.mark.parametrize("size", [(1, 1), (16, 40), (200, 90)])
def test_any_size_can_be_rendered(size):
    for index in range(3):
        frames = render(sample_triplet(0, index, realism=1.0).target, 2, *size)
        assert frames.shape == (2, *size, 3)
