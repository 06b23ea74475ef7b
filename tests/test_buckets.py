"""Batches of several shapes: who goes where, and that the order is a function of the step."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from conftest import SMALL, losses_of
from test_manifest import ROW

from rvedit.datasets.cache_job import CacheConfig, cache_manifest
from rvedit.io.clips import fitting_bucket
from rvedit.io.errors import UserError
from rvedit.io.manifest import read_manifest, write_manifest
from rvedit.io.records import ClipShape
from rvedit.pipelines.checkpoints import find_checkpoint, load_checkpoint
from rvedit.playground.prepare import PlaygroundConfig, prepare_playground
from rvedit.training.buckets import BucketSchedule
from rvedit.training.data import editor_samples
from rvedit.training.recipe import load_recipe
from rvedit.training.run import train
from rvedit.training.validation import validation_clips

LANDSCAPE, PORTRAIT, LONG = ClipShape(5, 32, 64), ClipShape(5, 64, 32), ClipShape(9, 32, 64)


@pytest.mark.parametrize(
    ("frames", "height", "width", "bucket"),
    [
        (5, 720, 1280, LANDSCAPE),
        (8, 720, 1280, LANDSCAPE),
        (9, 720, 1280, LONG),
        (300, 480, 832, LONG),
        (81, 1280, 720, PORTRAIT),
        (5, 600, 500, PORTRAIT),
        (4, 720, 1280, None),
    ],
)
def test_a_triplet_goes_where_its_shape_is_nearest_and_its_frames_suffice(frames, height, width, bucket):
    shapes = (LANDSCAPE, PORTRAIT, LONG)
    chosen = fitting_bucket(shapes, replace(ROW, num_frames=frames, height=height, width=width))
    assert (None if chosen is None else shapes[chosen]) == bucket


def test_the_order_is_a_function_of_the_step():
    weights = (6, 3, 1)
    order = [BucketSchedule(3, weights)[step] for step in range(400)]
    asked_backwards = BucketSchedule(3, weights)
    assert [asked_backwards[step] for step in reversed(range(400))] == order[::-1]
    for bucket, weight in enumerate(weights):
        turns = [turn for chosen, turn in order if chosen == bucket]
        assert turns == list(range(len(turns)))
        assert len(turns) == pytest.approx(40 * weight, abs=4 * np.sqrt(40 * weight))
    assert [BucketSchedule(3, [1.0])[step] for step in (0, 7)] == [(0, 0), (0, 7)]


def recipe_of(tmp_path, name, *assignments):
    path = tmp_path / f"{name}.yaml"
    path.write_text(
        "model: {preset: nano, init_from: nano}\nsteps: 6\nalignment: {weight: 0}\ndata:\n  buckets:\n"
        "  - {num_frames: 5, height: 32, width: 48}\n  - {num_frames: 1, height: 64, width: 32}\n"
    )
    return load_recipe(path, assignments=[*SMALL, *assignments])


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Six landscape clips and three portrait stills."""
    folder = tmp_path_factory.mktemp("mixed")
    list(prepare_playground(PlaygroundConfig(6, 1, "train", 5, 32, 48), folder / "clips", workers=1))
    list(prepare_playground(PlaygroundConfig(3, 2, "train", 1, 64, 32), folder / "stills", workers=1))
    names = ("clips", "stills")
    rows = [replace(row, root=name) for name in names for row in read_manifest(folder / name)]
    write_manifest(folder / "manifest.parquet", rows)
    return folder / "manifest.parquet"


def test_an_epoch_sees_every_triplet_once_in_its_own_shape(tmp_path, manifest):
    recipe = recipe_of(tmp_path, "epoch", "data.source=manifest", f"data.manifest={manifest}", "batch_size=3")
    samples = editor_samples(recipe, load_checkpoint(find_checkpoint("nano")))
    drawn = {}
    for number in range(0, 3 * 60):
        bucket, index = samples.position(number)
        if index < len(samples.buckets[bucket]):
            drawn[number] = samples.triplet(number)
    assert Counter(t.key for t in drawn.values()) == {t.key: 1 for t in samples.triplets}
    for number, triplet in drawn.items():
        assert tuple(samples[number].source.clip.shape[:3]) == (
            (5, 32, 48) if triplet.width == 48 else (1, 64, 32)
        )


@pytest.mark.slow
@pytest.mark.parametrize("source", ["playground", "manifest", "cache"])
def test_training_on_several_shapes_resumes_exactly(tmp_path, manifest, source):
    settings = ["model.frozen=[text_encoder]"]
    if source != "playground":
        settings += ["data.source=manifest", f"data.manifest={manifest}"]
    if source == "cache":
        shapes = recipe_of(tmp_path, "shapes").data.shapes
        list(cache_manifest(CacheConfig(manifest, tmp_path / "cache", shapes=shapes), "cpu"))
        settings += [f"data.cache={tmp_path / 'cache'}"]
    list(train(recipe_of(tmp_path, "whole", *settings), tmp_path, "cpu"))
    for steps in (3, 6):
        list(train(recipe_of(tmp_path, "parts", *settings, f"steps={steps}"), tmp_path, "cpu"))
    assert losses_of(tmp_path, "parts") == losses_of(tmp_path, "whole")


def test_what_fits_no_bucket_is_named(tmp_path, manifest):
    recipe = recipe_of(
        tmp_path,
        "long",
        "data.source=manifest",
        f"data.manifest={manifest}",
        "data.buckets=[{num_frames: 5, height: 32, width: 48}, {num_frames: 9, height: 32, width: 48}]",
    )
    with pytest.raises(UserError, match=r"has 1 frames, fewer than every shape of the recipe"):
        list(train(recipe, tmp_path, "cpu"))
    shown = validation_clips(
        recipe_of(
            tmp_path,
            "shown",
            "data.source=manifest",
            f"data.manifest={manifest}",
            "data.buckets=[{num_frames: 5, height: 32, width: 48}, {num_frames: 1, height: 64, width: 32}]",
        )
    )
    assert {clip.source.shape for clip in shown} == {(5, 32, 48, 3)}, "those of the first shape alone"
    with pytest.raises(UserError, match=r"data\.buckets is for task: editor"):
        list(train(recipe_of(tmp_path, "vae", "task=vae"), tmp_path, "cpu"))


def test_a_recipes_shapes_are_expected_in_their_shares(tmp_path):
    recipe = recipe_of(tmp_path, "shares", "data.still_share=0.2")
    clip = ClipShape(5, 32, 48)
    assert recipe.data.expected_shapes() == pytest.approx(
        {clip: 0.4, clip.still: 0.1, ClipShape(1, 64, 32): 0.5}
    )
