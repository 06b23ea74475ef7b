"""Run jobs in a pool of processes."""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import parent_process
from multiprocessing.connection import wait as wait_for_objects
from typing import TypeVar

from rvedit.io.errors import UserError
from rvedit.io.signals import stop_signals

In = TypeVar("In")
Out = TypeVar("Out")


def run_in_pool(
    function: Callable[[In], Out], jobs: Sequence[In], workers: int | None = None, chunk: int = 4
) -> Iterator[Out]:
    """Yield the function's results in order of completion; by default one process per core.

    Few jobs are submitted at once, so that little work is lost if the run ends early.
    """
    workers = max(1, min(workers or os.cpu_count() or 1, -(-len(jobs) // chunk)))
    if workers == 1:
        yield from map(function, jobs)
        return
    starts = iter(range(0, len(jobs), chunk))
    pool = start_workers(workers)
    try:
        pending: set[Future[list[Out]]] = set()
        while True:
            for start in islice(starts, 2 * workers - len(pending)):
                pending.add(pool.submit(_run_chunk, function, jobs[start : start + chunk]))
            if not pending:
                break
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                yield from result_of(future)
    finally:
        pool.shutdown(cancel_futures=True)


def map_ahead(
    function: Callable[[In], Out], jobs: Iterable[In], workers: int, setup: Callable[[], None] | None = None
) -> Generator[Out, None, None]:
    """Yield the function's results in the order of the jobs, computed ahead by processes; 0: by this one.

    At most `workers` results wait or are being computed, beside the one that was yielded last.
    """
    if not workers:
        yield from map(function, jobs)
        return
    pool = start_workers(workers, setup)
    try:
        pending: deque[Future[Out]] = deque()
        for job in jobs:
            pending.append(pool.submit(function, job))
            if len(pending) > workers:
                yield result_of(pending.popleft())
        while pending:
            yield result_of(pending.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def start_workers(count: int, setup: Callable[[], None] | None = None) -> ProcessPoolExecutor:
    """Return a pool of processes that ignore Ctrl-C and SIGHUP, and end with this one.

    Each calls `setup` first.
    """
    return ProcessPoolExecutor(count, initializer=_init_worker, initargs=(setup,))


def result_of(future: Future[Out]) -> Out:
    """Return a worker's result; raises UserError if its process died."""
    try:
        return future.result()
    except BrokenProcessPool:
        raise UserError(
            "a worker process died (killed, or out of memory): run the same command again, with fewer "
            "`workers` if memory is short; finished jobs are kept"
        ) from None


def _run_chunk(function: Callable[[In], Out], jobs: Sequence[In]) -> list[Out]:
    return [function(job) for job in jobs]


def _init_worker(setup: Callable[[], None] | None) -> None:
    """Leave Ctrl-C and SIGHUP to the parent, and end with the parent even if it is killed."""
    if hasattr(os, "nice"):  # not on Windows; the parent should not wait for its workers
        os.nice(5)
    for number in stop_signals():  # of which a pool uses SIGTERM itself, to end its workers
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if setup:
        setup()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        wait_for_objects([parent.sentinel])
        os._exit(1)
