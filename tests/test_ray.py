"""The same jobs on a local Ray: the same manifest, and a run that broke off goes on where it was."""

import json
import os
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from test_cache_shards import clip_of, files_of, make_manifest
from test_prepare import many
from test_sources import target_clip
from typer.testing import CliRunner

from rvedit.datasets.prepare import prepare_dataset
from rvedit.datasets.probe import probe_job
from rvedit.datasets.survey import DatasetConfig
from rvedit.io.errors import UserError
from rvedit.io.manifest import read_manifest
from rvedit.io.ray_jobs import run_actors, run_on_ray
from rvedit.playground.prepare import PlaygroundConfig, prepare_playground
from rvedit_cli.main import app

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """Two tasks at once, no dashboard, small memory; nothing is written to the home folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # Workers find the modules of these tests as pytest does.
        folders = [Path(__file__).parent, Path(__file__).parent.parent]
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, folders)))
        ray.init(
            address="local",
            num_cpus=2,
            object_store_memory=100 * 2**20,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
        )
        yield
        ray.shutdown()


@pytest.mark.slow
def test_ray_writes_the_process_pools_manifest(tmp_path):
    folder = many(tmp_path / "set", 8)
    (folder / "videos" / "t2.mp4").unlink()
    target_clip(folder / "videos" / "t2.mp4", num_frames=3)
    (folder / "videos" / "t5.mp4").unlink()
    (folder / "videos" / "t5.mp4").write_text("not a video")
    local = DatasetConfig("openve", (folder,), tmp_path / "pool", min_frames=5, workers=2)
    on_ray = replace(local, out=tmp_path / "ray", ray="local")
    reports = [prepare_dataset(order) for order in (local, on_ray)]
    assert reports[0].count == reports[1].count == 6
    assert reports[0].reasons == reports[1].reasons == {"target does not decode": 1, "too short": 1}
    for name in ("manifest.jsonl", "manifest.failures.jsonl"):
        assert (tmp_path / "pool" / name).read_bytes() == (tmp_path / "ray" / name).read_bytes()
    assert read_manifest(tmp_path / "ray") == read_manifest(tmp_path / "pool")
    assert not (tmp_path / "ray" / ".ray").exists()
    assert prepare_dataset(on_ray) == reports[1]  # all in the journal: no job is left


class Stumbling:
    """Notes each job that it does; the last one fails until a file says otherwise."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, job):
        if job["path"] == "last" and not (self.folder.parent / "mended").exists():
            deadline = time.monotonic() + 60
            while len(self.committed()) < 3 and time.monotonic() < deadline:  # the blocks before it
                time.sleep(0.1)
            raise ValueError("stumbled")
        with (self.folder.parent / "log").open("a") as log:
            log.write(f"{job['id']}\n")
        return {**job, "answer": len(job["path"])}

    def committed(self):
        files = (self.folder / "checkpoint").glob("*.parquet")
        return [file for file in files if ".pending" not in file.name]


@pytest.mark.slow
def test_rays_checkpoint_goes_on_where_a_run_broke_off(tmp_path):
    jobs = [{"id": f"job{index}", "path": "last" if index == 7 else f"p{index}"} for index in range(8)]
    work = Stumbling(tmp_path / "work")
    with pytest.raises(UserError, match="finished jobs are kept"):
        run_on_ray(work, jobs, "local", tmp_path / "work", block=2)
    assert {f"job{index}" for index in range(6)} <= set((tmp_path / "log").read_text().split())
    (tmp_path / "mended").touch()
    results = run_on_ray(work, jobs, "local", tmp_path / "work", block=2)
    assert {row["id"]: row["answer"] for row in results} == {job["id"]: len(job["path"]) for job in jobs}
    log = (tmp_path / "log").read_text().split()
    assert all(log.count(f"job{index}") == 1 for index in range(6))  # not done again
    assert not (tmp_path / "work").exists()


def test_no_jobs_need_no_cluster(tmp_path):
    assert run_on_ray(probe_job, [], "localhost:1", tmp_path / "work") == []
    assert not (tmp_path / "work").exists()


class Worker:
    """One per process; the first of them may fail."""

    def __init__(self, folder, fails):
        with (folder / "started").open("a") as log:
            log.write(f"{os.getpid()}\n")
        if fails == "start":
            raise UserError("model.yaml: is missing: write it")
        self.fails = fails

    def __call__(self, job):
        if self.fails == "job" and job["number"] == 3:
            raise ValueError("stumbled")
        return {"number": job["number"], "process": os.getpid(), "folder": os.getcwd()}


@pytest.mark.slow
def test_actors_start_once_in_the_callers_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jobs = [{"number": number} for number in range(8)]
    results = list(run_actors(partial(Worker, tmp_path, None), jobs, "local"))
    assert sorted(result["number"] for result in results) == list(range(8))
    assert {result["folder"] for result in results} == {str(tmp_path)}
    started = [int(line) for line in (tmp_path / "started").read_text().split()]
    assert len(set(started)) == len(started) <= 2
    assert {result["process"] for result in results} <= set(started)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fails", "message"),
    [("start", "^model.yaml: is missing: write it$"), ("job", "a job failed: ValueError: stumbled")],
)
def test_the_error_of_an_actor_is_one_line(tmp_path, fails, message):
    with pytest.raises(UserError, match=message):
        list(run_actors(partial(Worker, tmp_path, fails), [{"number": n} for n in range(8)], "local"))


@pytest.mark.slow
def test_a_cache_by_actors_is_that_of_one_process(tmp_path, monkeypatch):
    manifest = make_manifest(tmp_path / "set", 40)
    clip_of(manifest, 35).unlink()
    monkeypatch.chdir(tmp_path)  # paths are relative to it
    words = ["prepare", "cache", "set/manifest.parquet", "--bucket", "1x32x32", "--device", "cpu", "--json"]
    alone = CliRunner().invoke(app, [*words, "--out", "alone"])
    on_ray = CliRunner().invoke(app, [*words, "--out", "ray", "--ray", "local"])
    reports = [json.loads(result.stdout) for result in (alone, on_ray)]
    assert {(report["cached"], report["failed"]) for report in reports} == {(39, 1)}
    assert files_of(tmp_path / "ray") == files_of(tmp_path / "alone")
    shared = CliRunner().invoke(app, [*words, "--out", "x", "--ray", "local", "--shard", "1/2"])
    assert "leave out --shard" in str(shared.exception)


@pytest.mark.slow
def test_a_batch_by_actors_has_the_edits_of_one_process(tmp_path, monkeypatch):
    list(prepare_playground(PlaygroundConfig(4, 9, "test", 5, 32, 32), tmp_path / "set", workers=1))
    (tmp_path / "set" / "source" / "test_9_000001.mp4").write_bytes(b"no clip")
    monkeypatch.chdir(tmp_path)
    words = ["edit", "--batch", "set", "--steps", "1", "--model", "nano", "--device", "cpu", "--json"]
    alone = CliRunner().invoke(app, [*words, "--out-dir", "alone"])
    on_ray = CliRunner().invoke(app, [*words, "--out-dir", "ray", "--ray", "local"])
    reports = [json.loads(result.stdout) for result in (alone, on_ray)]
    assert all((report["edited"], list(report["failures"])) == (3, ["test_9_000001"]) for report in reports)
    assert files_of(tmp_path / "ray") == files_of(tmp_path / "alone")
    removed = next((tmp_path / "ray").glob("*_edited.mp4"))
    removed.unlink()
    again = CliRunner().invoke(app, [*words, "--out-dir", "ray", "--ray", "local"])
    report = json.loads(again.stdout)
    assert (report["edited"], report["there"], len(report["failures"])) == (1, 2, 1)
    assert files_of(tmp_path / "ray") == files_of(tmp_path / "alone")
