"""The same per-clip jobs on a Ray cluster, through Ray Data and its checkpoints by id (extra `ray`).

The folder must be one that every node sees under the same path, as must the clips. Ray Data filters ids
that its checkpoint holds out of the input, and commits the checkpoint of a block after the block's results
are in place, so an interrupted run goes on where it was.
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

_BLOCK = 128  # jobs that one task runs, and that are lost at most where it dies
_FILTER_MEMORY = 64 * 2**20  # bytes; Ray's own 1 GiB keeps small clusters waiting for ever


def run_on_ray(
    function: Callable[[dict[str, Any]], dict[str, Any]],
    jobs: Sequence[dict[str, Any]],
    address: str,
    folder: Path,
    block: int = _BLOCK,
) -> list[dict[str, Any]]:
    """Results of all jobs, in any order; each job has an `id` of its own.

    `address` is a cluster's, `auto` for the one that this machine belongs to, or `local` for a new one
    here. Results and checkpoints are kept in `folder` until the jobs are all done.
    Raises UserError where ray is not installed or the cluster does not answer.
    """
    try:
        import ray
        from ray.data import DataContext
        from ray.data.checkpoint import CheckpointConfig
    except ImportError as error:
        raise UserError(f"--ray {address}: {error}: install it with `pip install 'rvedit[ray]'`") from None
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
        before, context.checkpoint_config = context.checkpoint_config, checkpoint
        try:
            table = ray.data.read_parquet(str(folder / "jobs.parquet"))
            blocks = table.repartition(target_num_rows_per_block=block)
            blocks.map(function).write_parquet(str(folder / "results"))
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise UserError(
                f"--ray {address}: the run broke off ({reason}): run the same command again; "
                "what is done is kept"
            ) from None
        finally:
            context.checkpoint_config = before
    finally:
        if started:
            ray.shutdown()
    wanted = {job["id"] for job in jobs}
    results = {
        row["id"]: row
        for file in (folder / "results").glob("*.parquet")
        for row in parquet.read_table(file).to_pylist()
    }
    shutil.rmtree(folder)
    return [row for name, row in results.items() if name in wanted]


def _connect(ray: Any, address: str) -> bool:
    """Join or start a cluster; true where this call is the one that did."""
    if ray.is_initialized():
        return False
    # With one CPU the filter of finished jobs and the jobs themselves would wait for each other.
    here = {"num_cpus": max(2, os.cpu_count() or 1), "include_dashboard": False} if address == "local" else {}
    try:
        _knock(address)
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **here)
    except Exception as error:  # Ray raises whatever its transport does
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"--ray {address}: no cluster answers ({reason}): check the address") from None
    return True


def _knock(address: str) -> None:
    """Raise OSError where nobody listens at host:port; Ray itself would try for half a minute, loudly."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
