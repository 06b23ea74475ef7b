"""The cache of latents: what training reads from it is what it would have encoded."""

import json

import pytest
import torch
from conftest import SMALL, losses_of

from rvedit.data.cache import LatentCache
from rvedit.data.manifest import read_manifest
from rvedit.errors import UserError
from rvedit.recipes import load_recipe
from rvedit.workflows.cache import CacheOrder, cache_latents
from rvedit.workflows.playground import PlaygroundOrder, prepare_playground
from rvedit.workflows.train import train

SIZE = {"num_frames": 5, "height": 32, "width": 32}


@pytest.fixture
def manifest(tmp_path):
    list(prepare_playground(PlaygroundOrder(3, **SIZE), tmp_path / "triplets", workers=1))
    return tmp_path / "triplets" / "manifest.parquet"


def recipe_on(tmp_path, name, manifest, *assignments):
    path = tmp_path / f"{name}.yaml"
    path.write_text("model: {preset: nano, init_from: nano}\nsteps: 3\nalignment: {weight: 0.1}\n")
    here = ("data.source=manifest", f"data.manifest={manifest}", "data.still_share=0.4")
    return load_recipe(path, assignments=[*SMALL, *here, *assignments])


def test_training_from_the_cache_is_training_from_pixels(tmp_path, manifest):
    progress = list(cache_latents(CacheOrder(manifest, tmp_path / "cache", **SIZE), "cpu"))
    assert (progress[-1].done, progress[-1].failed, progress[-1].total) == (3, 0, 3)
    list(train(recipe_on(tmp_path, "pixels", manifest), tmp_path, "cpu"))
    cached = recipe_on(tmp_path, "cached", manifest, f"data.cache={tmp_path / 'cache'}")
    list(train(cached, tmp_path, "cpu"))
    # The cache is in bf16, so to its precision.
    assert losses_of(tmp_path, "cached") == pytest.approx(losses_of(tmp_path, "pixels"), rel=2e-2)


def test_a_second_run_encodes_what_is_missing_alone(tmp_path, manifest):
    order = CacheOrder(manifest, tmp_path / "cache", **SIZE)
    target = tmp_path / "triplets" / read_manifest(manifest)[1].target
    moved = target.rename(tmp_path / "away.mp4")
    last = list(cache_latents(order, "cpu"))[-1]
    assert (last.done, last.failed) == (2, 1)
    failure = json.loads((tmp_path / "cache" / "cache.failures.jsonl").read_text())
    assert "is gone" in failure["detail"]
    assert failure["row"] == 2
    with pytest.raises(UserError, match="not cached: run `rvedit prepare cache` again"):
        LatentCache(order.folder).require(read_manifest(manifest), **SIZE)
    shards = {p: p.stat().st_mtime_ns for p in order.folder.glob("shard-*")}
    moved.rename(target)
    last = list(cache_latents(order, "cpu"))[-1]
    assert (last.done, last.failed) == (3, 0)
    assert all(p.stat().st_mtime_ns == time for p, time in shards.items())
    LatentCache(order.folder).require(read_manifest(manifest), **SIZE)


def test_another_size_is_refused(tmp_path, manifest):
    list(cache_latents(CacheOrder(manifest, tmp_path / "cache", **SIZE), "cpu"))
    other = CacheOrder(manifest, tmp_path / "cache", **{**SIZE, "num_frames": 1})
    with pytest.raises(UserError, match=r"another num_frames \(5, not 1\)"):
        list(cache_latents(other, "cpu"))
    with pytest.raises(UserError, match="num_frames 5, the recipe has 9"):
        LatentCache(tmp_path / "cache").require([], 9, 32, 32)


def test_latents_are_those_of_the_vae(tmp_path, manifest):
    from rvedit.checkpoints import find_checkpoint, load_pipeline
    from rvedit.data.clips import read_pair
    from rvedit.model.latents import encode
    from rvedit.video_tensors import to_model_range

    list(cache_latents(CacheOrder(manifest, tmp_path / "cache", **SIZE), "cpu"))
    triplet = read_manifest(manifest)[0]
    vae = load_pipeline(find_checkpoint("nano")).vae
    clips = read_pair(manifest, triplet, *SIZE.values())
    for cached, clip in zip(LatentCache(tmp_path / "cache").read(triplet.key), clips, strict=True):
        with torch.no_grad():
            latents = encode(vae, to_model_range(clip)[None])[0]
        torch.testing.assert_close(cached.latents.float(), latents, rtol=1e-2, atol=1e-2)


def test_manifests_that_training_cannot_use(tmp_path, manifest):
    with pytest.raises(UserError, match=r"has 5 frames, not 9: lower data.num_frames"):
        list(train(recipe_on(tmp_path, "long", manifest, "data.num_frames=9"), tmp_path, "cpu"))
    triplet = read_manifest(manifest)[0]
    (tmp_path / "triplets" / triplet.source).unlink()
    with pytest.raises(UserError, match=f"the source of playground/{triplet.id} is gone"):
        list(train(recipe_on(tmp_path, "gone", manifest), tmp_path, "cpu"))
    rows = manifest.with_suffix(".jsonl")
    rows.write_text(rows.read_text().replace(json.dumps(triplet.instruction), '""'))
    with pytest.raises(UserError, match=r"row 1 .*the instruction is empty"):
        list(train(recipe_on(tmp_path, "empty", rows), tmp_path, "cpu"))
