"""Work over all cores, and a journal of what is done that outlives any kind of end."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import parent_process
from multiprocessing.connection import wait as wait_for_objects
from pathlib import Path
from typing import Any, TypeVar

from rvedit.io.errors import UserError

In = TypeVar("In")
Out = TypeVar("Out")


def run_in_pool(
    function: Callable[[In], Out], jobs: Sequence[In], workers: int | None = None, chunk: int = 4
) -> Iterator[Out]:
    """The function's results as they come, in any order, from one process per core by default.

    Few jobs are under way at once, so that little is lost where the run ends early.
    """
    workers = max(1, min(workers or os.cpu_count() or 1, -(-len(jobs) // chunk)))
    if workers == 1:
        yield from map(function, jobs)
        return
    starts = iter(range(0, len(jobs), chunk))
    pool = start_workers(workers)
    try:
        waiting: set[Future[list[Out]]] = set()
        while True:
            for start in islice(starts, 2 * workers - len(waiting)):
                waiting.add(pool.submit(_each, function, jobs[start : start + chunk]))
            if not waiting:
                break
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                yield from result_of(future)
    finally:
        pool.shutdown(cancel_futures=True)


def start_workers(count: int) -> ProcessPoolExecutor:
    """Processes that leave Ctrl-C to this one and end with it."""
    return ProcessPoolExecutor(count, initializer=_begin_worker)


def result_of(future: Future[Out]) -> Out:
    """What a worker gave back. Raises UserError where it died."""
    try:
        return future.result()
    except BrokenProcessPool:
        raise UserError(
            "a worker process died (killed, or out of memory): run the same command again, with fewer "
            "--workers if memory is short; what is done is kept"
        ) from None


def _each(function: Callable[[In], Out], jobs: Sequence[In]) -> list[Out]:
    return [function(job) for job in jobs]


def _begin_worker() -> None:
    """Leave Ctrl-C to the parent, end with it even where it is killed, and let it run when it has work."""
    if hasattr(os, "nice"):  # not on Windows
        os.nice(5)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        wait_for_objects([parent.sentinel])
        os._exit(1)


class Journal:
    """Lines of JSON by `id`, each on the disk as soon as it is done; a torn last line is ignored."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: dict[str, dict[str, Any]] = {}
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        self._is_torn = bool(text) and not text.endswith("\n")
        for line in text.split("\n"):
            try:
                entry = json.loads(line)
                self.done[entry["id"]] = entry
            except (json.JSONDecodeError, KeyError, TypeError):  # torn by a kill: done again
                continue

    def record(self, entries: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Pass entries through, each written before it is passed on."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("\n" if self._is_torn else "")
                self._is_torn = False
                for entry in entries:
                    file.write(json.dumps(entry, ensure_ascii=False) + "\n")
                    file.flush()
                    self.done[entry["id"]] = entry
                    yield entry
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be written ({error.strerror}): make room or choose another --out; "
                "what is done is kept"
            ) from None
