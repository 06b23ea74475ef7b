"""The same jobs on a local Ray: the same manifest, and a run that broke off goes on where it was."""

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from test_prepare import many
from test_sources import target_clip

from rvedit.datasets.prepare import prepare_dataset
from rvedit.datasets.probe import probe_job
from rvedit.datasets.ray_jobs import run_on_ray
from rvedit.datasets.survey import DatasetConfig
from rvedit.io.errors import UserError
from rvedit.io.manifest import read_manifest

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
