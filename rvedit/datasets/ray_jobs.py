"""Run per-clip jobs on a Ray cluster, with Ray Data and its checkpoints by id (extra `ray`).

Every node must see the folder and the clips under the same paths. Ray Data skips ids in its checkpoint, and
checkpoints a block after writing the block's results, so that an interrupted run resumes.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rvedit.io.errors import UserError

_FILTER_MEMORY = 64 * 2**20  # bytes; small clusters wait forever for Ray's default of 1 GiB


def run_on_ray(
    function: Callable[[dict[str, Any]], dict[str, Any]],
    jobs: Sequence[dict[str, Any]],
    address: str,
    folder: Path,
    block: int = 128,
) -> list[dict[str, Any]]:
    """Return the results of all jobs, in any order; each job has a unique `id`.

    `address` is a cluster's, `auto` for this machine's cluster, or `local` to start one. Results and
    checkpoints are kept in `folder` until all jobs are done. A task runs `block` jobs, which its death loses.
    Raises UserError if ray is not installed or the cluster does not answer.
    """
    try:
        import ray
        from ray.data import DataContext
        from ray.data.checkpoint import CheckpointConfig
    except ImportError as error:
        raise UserError(f"`ray` {address}: {error}: install it with `pip install 'rvedit[ray]'`") from None
    import pyarrow as arrow
    from pyarrow import parquet

    if not jobs:
        return []
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    parquet.write_table(arrow.Table.from_pylist(list(jobs)), folder / "jobs.parquet")
    started = _connect(ray, address)
    try:
        context = DataContext.get_current()
        context.enable_progress_bars = sys.stderr.isatty()
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        checkpoint = CheckpointConfig(
            id_column="id", checkpoint_path=str(folder / "checkpoint"), delete_checkpoint_on_success=False
        )
        checkpoint.checkpoint_actor_memory_bytes = _FILTER_MEMORY
        previous, context.checkpoint_config = context.checkpoint_config, checkpoint
        try:
            table = ray.data.read_parquet(str(folder / "jobs.parquet"))
            blocks = table.repartition(target_num_rows_per_block=block)
            blocks.map(function).write_parquet(str(folder / "results"))
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise UserError(
                f"`ray` {address}: the run failed ({reason}): run the same command again; "
                "finished jobs are kept"
            ) from None
        finally:
            context.checkpoint_config = previous
    finally:
        if started:
            ray.shutdown()
    results = {
        row["id"]: row
        for file in (folder / "results").glob("*.parquet")
        for row in parquet.read_table(file).to_pylist()
    }
    shutil.rmtree(folder)
    return [results[job["id"]] for job in jobs]


def _connect(ray: Any, address: str) -> bool:
    """Connect to a cluster or start one; return whether this call did so."""
    if ray.is_initialized():
        return False
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
