"""Run jobs on a Ray cluster with Ray Data (extra `ray`): small ones by id, or by actors that hold a model.

Every node must see the folder and the clips under the same paths.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rvedit.io.errors import UserError, reason_of

Job = dict[str, Any]
Worker = Callable[[Job], Job]
_FILTER_MEMORY = 64 * 2**20  # bytes; small clusters wait forever for Ray's default of 1 GiB


def run_on_ray(
    function: Worker, jobs: Sequence[Job], address: str, folder: Path, block: int = 128
) -> list[Job]:
    """Return the results of all jobs, in any order; each job has a unique `id`.

    `address` is a cluster's, `auto` for this machine's cluster, or `local` to start one. Results and
    checkpoints are kept in `folder` until all jobs are done. A task runs `block` jobs, which its death loses.
    Ray Data skips ids in its checkpoint, and checkpoints a block after writing the block's results, so that
    an interrupted run resumes. Raises UserError if ray is not installed or the cluster does not answer.
    """
    ray = _import_ray(address)
    import pyarrow as arrow
    from pyarrow import parquet
    from ray.data.checkpoint import CheckpointConfig

    if not jobs:
        return []
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    parquet.write_table(arrow.Table.from_pylist(list(jobs)), folder / "jobs.parquet")
    with _cluster(ray, address) as context:
        checkpoint = CheckpointConfig(
            id_column="id", checkpoint_path=str(folder / "checkpoint"), delete_checkpoint_on_success=False
        )
        checkpoint.checkpoint_actor_memory_bytes = _FILTER_MEMORY
        previous, context.checkpoint_config = context.checkpoint_config, checkpoint
        try:
            table = ray.data.read_parquet(str(folder / "jobs.parquet"))
            blocks = table.repartition(target_num_rows_per_block=block)
            blocks.map(function).write_parquet(str(folder / "results"))
        finally:
            context.checkpoint_config = previous
    results = {
        row["id"]: row
        for file in (folder / "results").glob("*.parquet")
        for row in parquet.read_table(file).to_pylist()
    }
    shutil.rmtree(folder)
    return [results[job["id"]] for job in jobs]


def run_actors(make_worker: Callable[[], Worker], jobs: Sequence[Job], address: str) -> Iterator[Job]:
    """Yield the results of all jobs, as they are done, in any order.

    Each process of the cluster calls `make_worker` once, for an object that does its jobs and holds a model.
    It has a GPU of its own if the cluster has some, otherwise a CPU core, and the caller's working folder.
    Workers must keep what they have done: the next run asks for all jobs again. Jobs and results are of
    JSON's types. Raises UserError if ray is not installed, no cluster answers, or a worker raises an error.
    """
    if not jobs:
        return
    ray = _import_ray(address)
    with _cluster(ray, address):
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        most = min(len(jobs), gpus or int(resources["CPU"]))
        results = ray.data.from_items(list(jobs), override_num_blocks=len(jobs)).map(
            _Actor,
            fn_constructor_args=(make_worker, os.getcwd()),
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=most),
            num_gpus=1 if gpus else 0,
        )
        for row in results.iter_rows():
            if row["error"]:
                raise UserError(row["error"])
            yield json.loads(row["result"])


class _Actor:
    """A worker in a process of the cluster. Its errors are results: Ray would hide them in its own."""

    def __init__(self, make_worker: Callable[[], Worker], folder: str) -> None:
        self.error = ""
        with suppress(OSError):  # another machine may not have it: paths then must be absolute
            os.chdir(folder)
        with self._keep_error():
            self.worker = make_worker()

    def __call__(self, job: Job) -> dict[str, str]:
        result = None
        if not self.error:
            with self._keep_error():
                result = self.worker(job)
        return {"result": json.dumps(result), "error": self.error}

    @contextmanager
    def _keep_error(self) -> Iterator[None]:
        try:
            yield
        except UserError as error:
            self.error = str(error)
        except Exception as error:  # such as a full memory
            self.error = f"`ray`: a job failed: {reason_of(error)}: run the same command again"


def _import_ray(address: str) -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UserError(f"`ray` {address}: {error}: install it with `pip install 'rvedit[ray]'`") from None
    return ray


@contextmanager
def _cluster(ray: Any, address: str) -> Iterator[Any]:
    """Connect to a cluster; yield Ray Data's settings. Raises UserError if a run in the block fails."""
    started = _connect(ray, address)
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = sys.stderr.isatty()
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        yield context
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise UserError(
            f"`ray` {address}: the run failed ({reason}): run the same command again; finished jobs are kept"
        ) from None
    finally:
        if started:
            ray.shutdown()


def _connect(ray: Any, address: str) -> bool:
    """Connect to a cluster or start one; return whether this call did so."""
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it reports on its own actors as of errors
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address == "local":  # with one CPU Ray's filter of finished jobs and the jobs deadlock
        options |= {"num_cpus": max(2, os.cpu_count() or 1), "include_dashboard": False}
    try:
        _check_port(address)
        ray.init(address=address, **options)
    except Exception as error:  # Ray passes on any error of its transport
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"`ray` {address}: no cluster answers ({reason}): check the address") from None
    return True


def _check_port(address: str) -> None:
    """Raise OSError if nothing listens at host:port; Ray would log and retry for half a minute."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
