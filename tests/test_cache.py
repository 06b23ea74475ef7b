"""The cache of latents: what training reads from it is what it would have encoded."""

import json
from dataclasses import replace

import pytest
import torch
from conftest import SMALL, losses_of

from rvedit.datasets import cache_encoders
from rvedit.datasets.cache_job import CacheConfig, cache_manifest
from rvedit.io.clips import read_pair
from rvedit.io.errors import UserError
from rvedit.io.frames import to_model_range
from rvedit.io.latent_cache import LatentCache, TextCache, fingerprint, texts_of
from rvedit.io.manifest import read_manifest
from rvedit.io.records import ClipShape
from rvedit.models.autoencoder import encode
from rvedit.models.text_tokens import encode_text
from rvedit.pipelines.checkpoints import find_checkpoint, load_checkpoint
from rvedit.playground.prepare import PlaygroundConfig, prepare_playground
from rvedit.training.distributed import Processes
from rvedit.training.editor import EditorTask
from rvedit.training.loop import fit
from rvedit.training.recipe import load_recipe
from rvedit.training.run import train

SIZE = {"num_frames": 5, "height": 32, "width": 32}
SHAPE = ClipShape(**SIZE)
NANO = load_checkpoint(find_checkpoint("nano"))
VAE = fingerprint(NANO.vae.named_parameters())


@pytest.fixture
def manifest(tmp_path):
    list(prepare_playground(PlaygroundConfig(3, **SIZE), tmp_path / "triplets", workers=1))
    return tmp_path / "triplets" / "manifest.parquet"


def recipe_on(tmp_path, name, manifest, *assignments):
    path = tmp_path / f"{name}.yaml"
    path.write_text("model: {preset: nano, init_from: nano}\nsteps: 3\nalignment: {weight: 0.1}\n")
    here = ("data.source=manifest", f"data.manifest={manifest}", "data.still_share=0.4")
    return load_recipe(path, assignments=[*SMALL, *here, *assignments])


def test_training_from_the_cache_is_training_from_pixels(tmp_path, manifest):
    progress = list(cache_manifest(CacheConfig(manifest, tmp_path / "cache", shapes=(SHAPE,)), "cpu"))
    last = {step.kind: step for step in progress}
    assert (last["triplets"].done, last["triplets"].failed, last["triplets"].total) == (3, 0, 3)
    assert last["texts"].done == last["texts"].total == len(texts_of(read_manifest(manifest)))
    list(train(recipe_on(tmp_path, "pixels", manifest), tmp_path, "cpu"))
    cached = recipe_on(tmp_path, "cached", manifest, f"data.cache={tmp_path / 'cache'}")
    list(train(cached, tmp_path, "cpu"))
    # The cache is in bf16, so to its precision.
    assert losses_of(tmp_path, "cached") == pytest.approx(losses_of(tmp_path, "pixels"), rel=2e-2)


def test_a_second_run_encodes_what_is_missing_alone(tmp_path, manifest):
    config = CacheConfig(manifest, tmp_path / "cache", shapes=(SHAPE,), texts=False)
    target = tmp_path / "triplets" / read_manifest(manifest)[1].target
    moved = target.rename(tmp_path / "away.mp4")
    last = list(cache_manifest(config, "cpu"))[-1]
    assert (last.done, last.failed) == (2, 1)
    [listed] = (tmp_path / "cache").glob("shard-*.failures.jsonl")
    failure = json.loads(listed.read_text())
    assert "is missing" in failure["detail"]
    assert failure["row"] == 2
    with pytest.raises(UserError, match="not cached: run `rvedit prepare cache` again"):
        LatentCache(config.folder).require(read_manifest(manifest), [SHAPE], VAE)
    moved.rename(target)
    for triplet in (read_manifest(manifest)[0], read_manifest(manifest)[2]):  # not read again
        (tmp_path / "triplets" / triplet.source).unlink()
    last = list(cache_manifest(config, "cpu"))[-1]
    assert (last.done, last.failed) == (3, 0)
    assert not listed.exists()
    LatentCache(config.folder).require(read_manifest(manifest), [SHAPE], VAE)


def test_a_clip_that_cannot_be_read_does_not_stop_a_training(tmp_path, manifest):
    """It is listed, and left out."""
    bad = read_manifest(manifest)[1]
    (tmp_path / "triplets" / bad.target).write_bytes(b"no clip")
    list(cache_manifest(CacheConfig(manifest, tmp_path / "cache", shapes=(SHAPE,)), "cpu"))
    recipe = recipe_on(tmp_path, "rest", manifest, f"data.cache={tmp_path / 'cache'}")
    with pytest.warns(UserWarning, match="1 triplets are skipped, as they could not be cached"):
        task = EditorTask(recipe, Processes("ddp", "cpu"))
    assert len(task.samples.triplets) == 2
    assert bad.key not in {triplet.key for triplet in task.samples.triplets}


def test_another_size_is_refused(tmp_path, manifest):
    list(cache_manifest(CacheConfig(manifest, tmp_path / "cache", shapes=(SHAPE,)), "cpu"))
    other = CacheConfig(manifest, tmp_path / "cache", shapes=(SHAPE.still,))
    with pytest.raises(UserError, match=r"was made with shapes \(.*5x32x32.*, not .*1x32x32"):
        list(cache_manifest(other, "cpu"))
    cache = LatentCache(tmp_path / "cache")
    with pytest.raises(UserError, match="has clips of 5x32x32, the recipe needs 9x32x32"):
        cache.require([], [replace(SHAPE, num_frames=9)], VAE)
    with pytest.raises(UserError, match="another VAE"):
        cache.require([], [SHAPE], "0123")


def test_latents_are_those_of_the_vae(tmp_path, manifest):
    list(cache_manifest(CacheConfig(manifest, tmp_path / "cache", shapes=(SHAPE,)), "cpu"))
    triplet = read_manifest(manifest)[0]
    vae = NANO.vae
    clips = read_pair(manifest, triplet, SHAPE)
    for cached, clip in zip(LatentCache(tmp_path / "cache").read(triplet.key), clips, strict=True):
        with torch.no_grad():
            latents = encode(vae, to_model_range(clip)[None])[0]
        torch.testing.assert_close(cached.latents.float(), latents, rtol=1e-2, atol=1e-2)


@pytest.mark.slow
def test_manifests_that_training_cannot_use(tmp_path, manifest):
    with pytest.raises(UserError, match=r"has 5 frames, not 9: lower data.num_frames"):
        list(train(recipe_on(tmp_path, "long", manifest, "data.num_frames=9"), tmp_path, "cpu"))
    triplet = read_manifest(manifest)[0]
    (tmp_path / "triplets" / triplet.source).unlink()
    for workers in (0, 1):  # a worker's error comes without its traceback
        settings = (f"data.workers={workers}", "data.max_unreadable=0")
        recipe = recipe_on(tmp_path, f"gone{workers}", manifest, *settings)
        with pytest.raises(UserError, match=f"^[^\n]*source of playground/{triplet.id} is missing[^\n]*$"):
            list(train(recipe, tmp_path, "cpu"))
    rows = manifest.with_suffix(".jsonl")
    rows.write_text(rows.read_text().replace(json.dumps(triplet.instruction), '""'))
    with pytest.raises(UserError, match=r"row 1 .*the instruction is empty"):
        list(train(recipe_on(tmp_path, "empty", rows), tmp_path, "cpu"))


def test_a_damaged_part_of_the_cache_is_not_read(tmp_path, manifest, monkeypatch):
    """Triplets of another part take the place of its own."""
    monkeypatch.setattr(cache_encoders, "SHARD", 1)
    list(cache_manifest(CacheConfig(manifest, tmp_path / "cache", shapes=(SHAPE,), texts=False), "cpu"))
    first = LatentCache(tmp_path / "cache").path_of[read_manifest(manifest)[0].key]
    first.write_bytes(first.read_bytes()[:1000])
    recipe = recipe_on(tmp_path, "rest", manifest, f"data.cache={tmp_path / 'cache'}")
    with pytest.warns(UserWarning, match=f"{first}: cannot be read .*; another clip takes its place"):
        assert [step["unreadable"] for step in train(recipe, tmp_path, "cpu")][-1] == 1


FROZEN = ("model.frozen=[text_encoder]", "data.instruction_dropout=0.5")


@pytest.mark.slow
def test_a_frozen_text_encoder_need_not_run(tmp_path, manifest, count_calls):
    config = CacheConfig(manifest, tmp_path / "cache", shapes=(SHAPE,))
    list(cache_manifest(config, "cpu"))
    cached = (f"data.cache={tmp_path / 'cache'}", *FROZEN)
    runs = {"read": cached, "encoded": cached, "trained": cached[:1]}
    calls = {}
    for name, settings in runs.items():
        if name == "encoded":
            for path in config.folder.glob("text*"):
                path.unlink()
        elif name == "trained":
            list(cache_manifest(config, "cpu"))
        processes = Processes("ddp", "cpu")
        task = EditorTask(recipe_on(tmp_path, name, manifest, *settings), processes)
        calls[name] = count_calls(task.pipeline.text_encoder)
        list(fit(task, task.recipe, tmp_path / name, processes))
    assert not calls["read"]
    assert calls["encoded"]
    assert calls["trained"]
    assert losses_of(tmp_path, "read") == pytest.approx(losses_of(tmp_path, "encoded"), rel=2e-2)


@pytest.mark.slow
def test_texts_are_kept_by_their_words(tmp_path, manifest):
    config = CacheConfig(manifest, tmp_path / "cache", shapes=(SHAPE,))
    list(cache_manifest(config, "cpu"))
    text = read_manifest(manifest)[0].instruction
    padded = encode_text(NANO.tokenizer, NANO.text_encoder, [text], NANO.config.max_text_length)[0]
    states = TextCache(config.folder).read(text)
    assert len(states) == len(NANO.tokenizer(text).input_ids)
    torch.testing.assert_close(states.float(), padded[: len(states)], rtol=1e-2, atol=1e-2)
    assert not padded[len(states) :].any()

    rows = manifest.with_suffix(".jsonl")
    rows.write_text(rows.read_text().replace(json.dumps(text), '"do what was never cached"'))
    cached = recipe_on(tmp_path, "new", rows, f"data.cache={config.folder}", *FROZEN)
    with pytest.raises(UserError, match="'do what was never cached' and 0 more texts are not cached"):
        list(train(cached, tmp_path, "cpu"))
    last = list(cache_manifest(replace(config, manifest=rows), "cpu"))[-1]
    assert (last.kind, last.done) == ("texts", len(texts_of(read_manifest(rows))))
    list(train(cached, tmp_path, "cpu"))
