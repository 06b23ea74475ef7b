"""Training with reference images: of the playground, of a manifest, from a cache."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as arrow
import pytest
import torch
from conftest import SMALL, losses_of, random_clip
from PIL import Image
from pyarrow import parquet
from test_sources import source_clip, target_clip, write_csv

from rvedit.datasets.cache_job import CacheConfig, cache_manifest
from rvedit.datasets.prepare import prepare_dataset
from rvedit.datasets.survey import DatasetConfig
from rvedit.io.errors import UserError
from rvedit.io.manifest import clip_path, read_manifest, read_rows, write_manifest
from rvedit.io.records import ClipShape
from rvedit.io.tables import read_bytes
from rvedit.io.video import read_image
from rvedit.models.reference_images import shrink_to_fit
from rvedit.pipelines.checkpoints import add_reference_modules, find_checkpoint, load_checkpoint
from rvedit.playground.prepare import PlaygroundConfig, prepare_playground
from rvedit.playground.world import render, sample_triplet
from rvedit.training.distributed import Processes
from rvedit.training.editor import EditorTask
from rvedit.training.recipe import load_recipe
from rvedit.training.run import train

RECIPES = Path(__file__).parents[1] / "recipes"
SIZE = {"num_frames": 5, "height": 32, "width": 32}
SHAPE = ClipShape(**SIZE)
READS = "model.reference_images=true"


def write_recipe(folder: Path, name: str, *assignments: str):
    path = folder / f"{name}.yaml"
    path.write_text("model: {preset: nano, init_from: nano}\nsteps: 3\nalignment: {weight: 0.1}\n")
    return load_recipe(path, assignments=[*SMALL, *assignments])


@pytest.fixture
def manifest(tmp_path) -> Path:
    """Six triplets, of which the even ones have a picture."""
    path = tmp_path / "triplets" / "manifest.parquet"
    list(prepare_playground(PlaygroundConfig(6, **SIZE), path.parent, workers=1))
    rows = read_manifest(path)
    for number in (0, 2, 4):
        name = f"picture{number}.png"
        rows[number] = replace(rows[number], reference_image=name)
        picture = random_clip(1, 40, 60, seed=number)[0]  # larger than the clips
        Image.fromarray(picture).save(clip_path(path, rows[number], "reference_image"))
    write_manifest(path, rows)
    return path


# --- playground ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("realism", [0.0, 0.8])
def test_pictures_show_the_new_thing_in_another_place(realism):
    plain = 0
    for index in range(30):
        triplet = sample_triplet(3, index, realism=realism, has_picture=True)
        (new,) = set(triplet.target.things) - set(triplet.source.things)
        (shown,) = triplet.picture.things
        assert (shown.noun, shown.color) == (new.noun, new.color)
        assert triplet.picture.background != triplet.target.background
        assert new.noun not in triplet.instruction
        words = triplet.instruction.split()
        assert "this" in words or "picture" in words
        plain += render(triplet.picture, 1, 32, 32).shape == (1, 32, 32, 3)
    assert plain == 30
    assert sample_triplet(3, 0).picture is None


def test_nanos_words_cover_the_instructions():
    tokenizer = load_checkpoint(find_checkpoint("nano")).tokenizer
    texts = [sample_triplet(1, n, split, has_picture=True).instruction for n in range(40)
             for split in ("train", "test_phrasing")]  # fmt: skip
    assert all(tokenizer.unk_token_id not in tokenizer(text).input_ids for text in texts)


def test_batches_have_pictures_or_none(tmp_path):
    recipe = write_recipe(tmp_path, "half", READS, "data.reference_share=0.5", "data.reference_dropout=0.2")
    task = EditorTask(recipe, Processes("ddp", "cpu"))
    counts = {True: 0, False: 0}
    for step in range(60):
        numbers = range(step * recipe.batch_size, (step + 1) * recipe.batch_size)
        given = {task.samples.has_picture(number) for number in numbers}
        assert len(given) == 1
        counts[given.pop()] += 1
    assert 12 < counts[True] < 36, "about 0.4 of them"
    with_one = next(n for n in range(0, 100, recipe.batch_size) if task.samples.has_picture(n))
    (batch,) = task.batches([list(range(with_one, with_one + recipe.batch_size))])
    assert batch.pictures.pixels.shape == (recipe.batch_size, 1, 32, 32, 3)
    assert len(batch.pictures.frames) == recipe.batch_size


def test_a_model_that_reads_none_is_told(tmp_path):
    recipe = write_recipe(tmp_path, "blind", "data.reference_share=0.5")
    with pytest.raises(UserError, match="reference_share: this model reads none: set model"):
        EditorTask(recipe, Processes("ddp", "cpu"))


@torch.no_grad()
def test_new_modules_act_on_the_queries_alone():
    pipe = load_checkpoint(find_checkpoint("nano"))
    clip, picture = random_clip(5, 112, 128), random_clip(1, 64, 64)[0]
    options = {"num_inference_steps": 1, "output_type": "latent"}
    before = pipe(clip, "make it sepia", generator=torch.Generator().manual_seed(0), **options).frames
    add_reference_modules(pipe)
    again = pipe(clip, "make it sepia", generator=torch.Generator().manual_seed(0), **options).frames
    assert torch.equal(before, again)
    given = pipe(
        clip, "make it sepia", generator=torch.Generator().manual_seed(0), reference_image=picture, **options
    ).frames
    assert not torch.equal(before, given)
    assert not any(p.any() for p in pipe.transformer.reference_embedder.parameters())


def test_a_trained_run_reads_pictures(tmp_path):
    recipe = write_recipe(tmp_path, "pictures", READS, "data.reference_share=1")
    list(train(recipe, tmp_path, "cpu"))
    folder = find_checkpoint(str(tmp_path / "pictures"))
    pipe = load_checkpoint(folder)
    assert pipe.reads_reference_images
    start = load_checkpoint(find_checkpoint("nano"))
    add_reference_modules(start)
    for name in ("reference_queries", "reference_connector.2.weight"):
        assert not torch.equal(pipe.connector.state_dict()[name], start.connector.state_dict()[name]), name
    assert any(p.any() for p in pipe.transformer.reference_embedder.parameters())
    saved = json.loads((folder / "transformer" / "config.json").read_text())
    assert saved["reads_reference_images"] is True


@pytest.mark.slow
def test_the_recipe_trains_at_nano_size_and_resumes(tmp_path):
    small = ("data.height=32", "data.width=32", "data.num_frames=5", "data.reference_share=1", "steps=20",
             "batch_size=6", "checkpoint_every=10", "optimizer.decay_steps=0", "data.workers=0")  # fmt: skip

    def recipe(name: str):
        path, overlay = RECIPES / "kiwi_reference.yaml", [RECIPES / "nano_scale.yaml"]
        return load_recipe(path, overlay, [*small, f"name={name}"])

    list(train(recipe("whole"), tmp_path, "cpu"))
    losses = losses_of(tmp_path, "whole")
    assert len(losses) == 20
    assert np.mean(losses[-7:]) < np.mean(losses[:7])
    for progress in train(recipe("parts"), tmp_path, "cpu"):
        if progress["step"] == 12:
            break
    list(train(recipe("parts"), tmp_path, "cpu"))
    assert losses_of(tmp_path, "parts") == losses


# --- manifests -------------------------------------------------------------------------------------------


def test_rows_with_and_without_pictures_have_batches_of_their_own(tmp_path, manifest):
    here = ("data.source=manifest", f"data.manifest={manifest}", "data.workers=0")
    recipe = write_recipe(tmp_path, "mixed", READS, *here)
    task = EditorTask(recipe, Processes("ddp", "cpu"))
    seen = {True: set(), False: set()}
    for step in range(12):
        numbers = list(range(step * recipe.batch_size, (step + 1) * recipe.batch_size))
        (batch,) = task.batches([numbers])
        rows = {task.samples.triplet(number).reference_image is not None for number in numbers}
        assert rows == {batch.pictures is not None}
        seen[rows.pop()] |= {task.samples.triplet(number).key for number in numbers}
    assert len(seen[True]) == len(seen[False]) == 3
    with pytest.warns(UserWarning, match="3 of 6 rows have reference images, which are not used"):
        blind = EditorTask(write_recipe(tmp_path, "blind", *here), Processes("ddp", "cpu"))
    assert not any(blind.samples.has_picture(number) for number in range(20))


def test_pictures_of_two_sizes_do_not_make_a_batch(tmp_path, manifest):
    row = read_manifest(manifest)[2]
    Image.fromarray(random_clip(1, 90, 16)[0]).save(clip_path(manifest, row, "reference_image"))
    here = ("data.source=manifest", f"data.manifest={manifest}", "data.workers=0")
    task = EditorTask(write_recipe(tmp_path, "mixed", READS, *here), Processes("ddp", "cpu"))
    with pytest.raises(UserError, match="reference images of different sizes cannot be in one batch: raise"):
        list(task.batches([[2 * n, 2 * n + 1] for n in range(12)]))


def test_a_picture_that_cannot_be_read_is_replaced(tmp_path, manifest):
    row = read_manifest(manifest)[2]
    clip_path(manifest, row, "reference_image").write_bytes(b"no picture")
    here = ("data.source=manifest", f"data.manifest={manifest}", "data.workers=0")
    task = EditorTask(write_recipe(tmp_path, "bad", READS, *here), Processes("ddp", "cpu"))
    batches = list(task.batches([list(range(2 * n, 2 * n + 2)) for n in range(8)]))
    assert len(batches) == 8
    assert ["picture2.png" in path for path in task.unreadable] == [True]


def test_a_cache_holds_the_pictures(tmp_path, manifest):
    list(cache_manifest(CacheConfig(manifest, tmp_path / "cache", shapes=(SHAPE,)), "cpu"))
    here = ("data.source=manifest", f"data.manifest={manifest}", "optimizer.learning_rate=1e-6")
    list(train(write_recipe(tmp_path, "pixels", READS, *here), tmp_path, "cpu"))
    for row in read_manifest(manifest):  # the files are not needed any more
        if row.reference_image:
            clip_path(manifest, row, "reference_image").unlink()
    cached = write_recipe(tmp_path, "cached", READS, *here, f"data.cache={tmp_path / 'cache'}")
    list(train(cached, tmp_path, "cpu"))
    # The cache is in bf16, so to its precision.
    assert losses_of(tmp_path, "cached") == pytest.approx(losses_of(tmp_path, "pixels"), rel=2e-2)


def test_a_cache_without_pictures_is_refused(tmp_path, manifest):
    rows = read_manifest(manifest)
    write_manifest(manifest, [replace(row, reference_image=None) for row in rows])
    list(cache_manifest(CacheConfig(manifest, tmp_path / "cache", shapes=(SHAPE,)), "cpu"))
    write_manifest(manifest, rows)
    here = ("data.source=manifest", f"data.manifest={manifest}", "data.workers=0")
    recipe = write_recipe(tmp_path, "old", READS, *here, f"data.cache={tmp_path / 'cache'}")
    with pytest.raises(UserError, match="cache: was made without reference images: make it again"):
        list(train(recipe, tmp_path, "cpu"))


def test_shrinking_keeps_small_pictures():
    picture = random_clip(1, 40, 60)[0]
    assert np.array_equal(shrink_to_fit(picture, 64, 64), picture)
    assert shrink_to_fit(picture, 20, 64).shape == (20, 30, 3)


# --- rvedit prepare kiwi ---------------------------------------------------------------------------------


def encoded(picture: np.ndarray, kind: str) -> bytes:
    data = io.BytesIO()
    Image.fromarray(picture).save(data, kind)
    return data.getvalue()


def test_kiwis_pictures_come_from_files_and_from_bytes(tmp_path):
    folder, videos = tmp_path / "kiwi", tmp_path / "kiwi" / "videos"
    folder.mkdir()
    picture = random_clip(1, 24, 32)[0]
    (folder / "reference").mkdir()
    Image.fromarray(picture).save(folder / "reference" / "hat.png")
    (folder / "reference" / "bad.png").write_bytes(b"no picture")
    source_clip(videos / "s.mp4")
    for name in "abcdefghi":
        target_clip(videos / f"{name}.mp4")
    write_csv(
        folder / "refs.csv",
        ("prompt", "src_video", "tgt_video", "ref_image"),
        [
            ("put this hat on the man", "videos/s.mp4", "videos/a.mp4", "reference/hat.png"),
            ("make it blue", "videos/s.mp4", "videos/b.mp4", ""),
            ("put this on", "videos/s.mp4", "videos/c.mp4", "reference/nowhere.png"),
            ("put that on", "videos/s.mp4", "videos/d.mp4", "reference/bad.png"),
        ],
    )
    narrow = np.zeros((2, 900, 3), np.uint8)
    values = {"e": encoded(picture, "JPEG"), "f": encoded(picture, "BMP"), "g": b"\x89PNG", "h": None,
              "i": encoded(narrow, "PNG")}  # fmt: skip
    rows = [
        {
            "iid": name,
            "prompt": f"replace the dog with this {name}",
            "src_video": "videos/s.mp4",
            "tgt_video": f"videos/{name}.mp4",
            "ref_image_bytes": value,
        }
        for name, value in values.items()
    ]
    (folder / "refvie_477k").mkdir()
    parquet.write_table(arrow.Table.from_pylist(rows), folder / "refvie_477k" / "chunk_0.parquet")
    report = prepare_dataset(DatasetConfig("kiwi", (folder,), tmp_path / "out", min_frames=1, workers=1))
    triplets = {Path(t.target).stem: t for t in read_manifest(report.manifest)}
    assert sorted(triplets) == ["a", "b", "e", "f"]
    assert triplets["b"].reference_image is None
    for name, suffix, tolerance in (("a", ".png", 0), ("e", ".jpg", 40), ("f", ".png", 0)):
        path = clip_path(report.manifest, triplets[name], "reference_image")
        assert path.suffix == suffix
        assert np.abs(read_image(path).astype(int) - picture).mean() <= tolerance
    assert report.reasons == {"unreadable reference image": 4, "missing reference image": 1}
    failures = {
        Path(row["target"]).stem: row for row in read_rows(tmp_path / "out" / "manifest.failures.jsonl")
    }
    assert "ref_image_bytes is empty" in failures["h"]["detail"]
    assert failures["g"]["row"] == 3
    assert "is too long and narrow" in failures["i"]["detail"]


def test_bytes_of_the_type_of_datasets_are_read(tmp_path):
    """A struct of bytes and path, as the library datasets stores images."""
    data = encoded(random_clip(1, 24, 32)[0], "PNG")
    table = arrow.table({"image": [{"bytes": data, "path": "a.png"}, {"bytes": None, "path": "b.png"}]})
    parquet.write_table(table, tmp_path / "chunk.parquet")
    assert list(read_bytes(tmp_path / "chunk.parquet", "image", {1, 2})) == [(1, data), (2, None)]
