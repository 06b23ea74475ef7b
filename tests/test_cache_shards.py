"""A cache is the same, byte for byte, for any number of processes, kills, failures and growing manifests."""

import os
import signal
import subprocess
import sys
import time

import pytest
from processes import Command, rvedit

from rvedit.datasets import cache_encoders
from rvedit.datasets.cache_job import CacheConfig, cache_manifest, report_cache
from rvedit.io.errors import UserError
from rvedit.io.latent_cache import CacheSettings, LatentCache
from rvedit.io.manifest import read_manifest
from rvedit.io.pool import map_ahead
from rvedit.io.records import ClipShape
from rvedit.io.shards import add_torchrun, read_shard
from rvedit.io.temporary import atomic_path
from rvedit.playground.prepare import PlaygroundConfig, prepare_playground

SHAPE = ClipShape(1, 32, 32)
OPTIONS = ("--bucket", str(SHAPE), "--device", "cpu", "--workers", 1)


def make_manifest(folder, count):
    list(prepare_playground(PlaygroundConfig(count, num_frames=1, height=32, width=32), folder, workers=1))
    return folder / "manifest.parquet"


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def run(manifest, folder, *shards, workers=0):
    """Cache the given shares of a manifest, one after the other; return the files."""
    for shard in shards or [(0, 1)]:
        config = CacheConfig(manifest, folder, shapes=(SHAPE,), workers=workers, shard=shard)
        list(cache_manifest(config, "cpu"))
    return files_of(folder)


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(cache_encoders, "SHARD", 2)
    monkeypatch.setattr(cache_encoders, "TEXT_SHARD", 3)


@pytest.fixture
def manifest(tmp_path):
    return make_manifest(tmp_path / "set", 7)


def clip_of(manifest, row):
    return manifest.parent / read_manifest(manifest)[row].source


def test_any_number_of_processes_writes_the_same_cache(tmp_path, manifest, small_shards):
    clip_of(manifest, 2).unlink()
    one = run(manifest, tmp_path / "one")
    two = run(manifest, tmp_path / "two", (1, 2), (0, 2), workers=2)
    four = run(manifest, tmp_path / "four", (2, 4), (0, 4), (3, 4), (1, 4))
    assert one == two == four
    assert sum(name.startswith("shard-") and name.endswith(".safetensors") for name in one) == 4
    assert sum(name.endswith(".failures.jsonl") for name in one) == 1


def test_failures_of_two_processes_are_listed_until_they_are_repaired(tmp_path, manifest, small_shards):
    whole = run(manifest, tmp_path / "whole")
    broken = [clip_of(manifest, row) for row in (0, 3)]  # of groups 1 and 2, so of two processes
    contents = [path.read_bytes() for path in broken]
    for path in broken:
        path.write_bytes(b"no clip")
    config = CacheConfig(manifest, tmp_path / "cache", shapes=(SHAPE,))
    run(manifest, config.folder, (0, 2), (1, 2))
    triplets = read_manifest(manifest)
    assert LatentCache(config.folder).failed == {triplets[0].key, triplets[3].key}
    report = report_cache(config)
    assert (report.cached, report.failed, report.count) == (5, 2, 7)
    for path, content in zip(broken, contents, strict=True):
        path.write_bytes(content)
    run(manifest, config.folder, (1, 2))
    assert LatentCache(config.folder).failed == {triplets[0].key}
    assert run(manifest, config.folder, (0, 2)) == whole
    assert not LatentCache(config.folder).failed


def test_a_manifest_that_grew_gives_the_cache_of_the_whole(tmp_path, manifest, small_shards):
    whole = run(manifest, tmp_path / "whole")
    part = manifest.with_name("part.jsonl")
    lines = manifest.with_suffix(".jsonl").read_text().splitlines(keepends=True)
    part.write_text("".join([*lines[:2], *lines[3:6]]))
    for row in (1, 5):
        clip_of(manifest, row).rename(tmp_path / f"{row}.mp4")  # in the part, these two fail
    run(part, tmp_path / "grown")
    for row in (1, 5):
        (tmp_path / f"{row}.mp4").rename(clip_of(manifest, row))
    unchanged = clip_of(manifest, 3)
    unchanged.unlink()  # it is cached, and not read again
    run(manifest, tmp_path / "grown", (1, 2))
    assert set(files_of(tmp_path / "grown")) - set(whole), "kept while other processes may read them"
    assert run(manifest, tmp_path / "grown", (0, 2)) == whole


def test_a_cache_of_two_manifests_keeps_both(tmp_path, small_shards):
    first, second = make_manifest(tmp_path / "a", 3), make_manifest(tmp_path / "b", 6)
    rows = second.with_suffix(".jsonl")
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[3:]))
    before = run(first, tmp_path / "cache")
    after = run(rows, tmp_path / "cache")
    assert {name: after[name] for name in before if name.startswith("shard-")}.items() <= before.items()


def test_of_two_processes_the_first_writes_the_settings(tmp_path):
    first, second = CacheSettings("vae1", ("1x32x32",)), CacheSettings("vae2", ("1x32x32",))
    with atomic_path(tmp_path / "cache.json", overwrite=False) as path:  # a process in the middle of writing
        path.write_text("{}")
        LatentCache(tmp_path, first)
    assert LatentCache(tmp_path).settings == first
    with pytest.raises(UserError, match="was made with vae vae1, not vae2"):
        LatentCache(tmp_path, second)


def test_torchrun_divides_a_shard_further(monkeypatch):
    assert add_torchrun(read_shard("2/4")) == (1, 4)
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert add_torchrun(read_shard("1/1")) == (5, 8)
    assert add_torchrun(read_shard("2/4")) == (13, 32)


def test_results_come_in_order_and_few_ahead():
    started = []

    def jobs():
        for number in range(12):
            started.append(number)
            yield number

    results = map_ahead(abs, jobs(), workers=2)
    assert [next(results) for _ in range(4)] == [0, 1, 2, 3]
    assert len(started) <= 4 + 2
    assert list(results) == list(range(4, 12))
    assert list(map_ahead(abs, [-1, -2], workers=0)) == [1, 2]


@pytest.mark.slow
def test_two_processes_at_once(tmp_path):
    manifest = make_manifest(tmp_path / "set", 40)
    rvedit("prepare", "cache", manifest, "--out", "one", *OPTIONS, cwd=tmp_path, check=0)
    arguments = ("prepare", "cache", manifest, "--out", "two", *OPTIONS)
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"} for rank in range(2)]
    running = [Command(*arguments, cwd=tmp_path, environment={**os.environ, **rank}) for rank in ranks]
    done = [command.finish() for command in running]
    assert [end.returncode for end in done] == [0, 0], done
    assert any("two: 40 of 40 triplets" in end.stdout for end in done)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


@pytest.mark.slow
def test_torchrun(tmp_path):
    manifest = make_manifest(tmp_path / "set", 40)
    rvedit("prepare", "cache", manifest, "--out", "one", *OPTIONS, cwd=tmp_path, check=0)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend"]
    command += ["c10d", "--rdzv-endpoint", "localhost:0", "-m", "rvedit_cli", "prepare", "cache"]
    command += [str(manifest), "--out", "two", *map(str, OPTIONS)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


@pytest.mark.slow
def test_a_killed_process_goes_on_where_it_stopped(tmp_path):
    manifest = make_manifest(tmp_path / "set", 100)
    arguments = ("prepare", "cache", manifest, *OPTIONS)
    rvedit(*arguments, "--out", "whole", cwd=tmp_path, check=0)
    command, folder = Command(*arguments, "--out", "killed", cwd=tmp_path), tmp_path / "killed"
    while not list(folder.glob("shard-*.json")) and command.poll() is None:
        time.sleep(0.001)
    command.send_signal(signal.SIGKILL)
    assert command.finish().returncode == -signal.SIGKILL
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("shard-*.json")}
    assert 1 <= len(kept) <= 3
    rvedit(*arguments, "--out", "killed", cwd=tmp_path, check=0)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in kept.items())
    assert files_of(folder) == files_of(tmp_path / "whole")
