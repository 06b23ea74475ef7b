"""Run the queue, one job after another, in a child process: a cancel is immediate and frees all memory."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import warnings
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from tqdm import tqdm

from rvedit.io.errors import reason_of
from rvedit.studio.edit_job import JobEditor, LoadOptions
from rvedit.studio.jobs import Job, JobStore


class Worker:
    """Edits the queued jobs of a store in a thread of the server and a child process with the model.

    Only the server writes the jobs' states, so that they never disagree. What the running job does is kept in
    memory: `progress` has the values of `JobEditor`'s reports.
    """

    def __init__(self, store: JobStore, loading: LoadOptions) -> None:
        self.store, self.loading = store, loading
        self.progress: dict[str, Any] = {}
        self._running: str | None = None
        self._child: tuple[multiprocessing.process.BaseProcess, Connection] | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="rvedit-studio-worker", daemon=True)

    def start(self) -> None:
        """Start to edit."""
        self._thread.start()

    def stop(self) -> None:
        """End the child process; a job that is running stays so on disk, and is queued by the next server."""
        self._stopping = True
        self._kill()

    def cancel(self, job_id: str) -> None:
        """Cancel a job that is queued or running; nothing happens to others. Raises UserError for no job."""
        with self.store.changed:  # the job must not end, nor another begin, in between
            is_changed = self.store.update(job_id, "queued", state="cancelled") or self.store.update(
                job_id, "running", state="cancelled"
            )
            if is_changed and self._running == job_id:
                self._kill()

    def _run(self) -> None:
        while not self._stopping:
            self.store.wait_for(lambda: self.store.next_queued() is not None)
            job = self.store.next_queued()
            if job is not None:
                try:
                    self._run_job(job)
                except Exception as error:  # the disk is full, or the folder gone: others may do better
                    warnings.warn(f"job {job.id}: is given up ({reason_of(error)})", stacklevel=1)
                    self.store.fail(job.id, reason_of(error))

    def _run_job(self, job: Job) -> None:
        with self.store.changed:
            if not self.store.update(job.id, "queued", state="running"):
                return  # cancelled since
            self._running, self.progress = job.id, {"stage": "starting", "started": time.time()}
        try:
            changes = self._edit(job)
            _remove_parts(self.store.folder(job))
            with self.store.changed:
                if not self._stopping:
                    self.store.update(job.id, "running", **changes)
        finally:
            self._running, self.progress = None, {}

    def _edit(self, job: Job) -> dict[str, Any]:
        """Edit a job in the child; return the changes of the job at its end."""
        try:
            with self.store.changed:
                if self.store.get(job.id).state != "running":  # cancelled since
                    return {}
                connection = self._connection()
                connection.send((job, self.store.folder(job)))
            while True:
                kind, values = connection.recv()
                if kind == "progress":
                    self.progress = {**self.progress, **values}
                elif kind == "done":
                    return {"state": "done", **values}
                else:
                    return {"state": "failed", "error": values}
        except (EOFError, OSError):  # it has ended, by itself or by a cancel, whose state stays
            self._kill()
            if "edited" in self.progress:  # only the view is missing
                return {"state": "done", **self.progress["edited"]}
            return {
                "state": "failed",
                "error": "the process that edits was killed, perhaps as memory ran out: choose a smaller "
                "clip, or other options; see what they need",
            }

    def _connection(self) -> Connection:
        """Return the connection to the child, which is started if there is none."""
        with self.store.changed:
            if self._child is None or not self._child[0].is_alive():
                context = multiprocessing.get_context("spawn")
                ours, theirs = context.Pipe()
                process = context.Process(target=_edit_jobs, args=(theirs, self.loading), daemon=True)
                process.start()
                theirs.close()
                self._child = process, ours
            return self._child[1]

    def _kill(self) -> None:
        """End the child. The connection closes with its last user: a thread may be reading from it."""
        with self.store.changed:
            if self._child is not None:
                process, _ = self._child
                self._child = None
                process.kill()
                process.join()


def _edit_jobs(connection: Connection, loading: LoadOptions) -> None:
    """Edit the jobs that the server sends, in the child process, until the server ends."""
    jobs: SimpleQueue[tuple[Job, Path]] = SimpleQueue()

    def receive() -> None:
        with suppress(EOFError, OSError):
            while True:
                jobs.put(connection.recv())
        os._exit(1)  # the server is gone, perhaps by a kill: the next one edits the job anew

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which ends this process
    tqdm.set_lock(threading.RLock())  # its own is a semaphore of the system, which a kill would leave there
    threading.Thread(target=receive, daemon=True).start()
    edit = JobEditor(loading)
    while True:
        job, folder = jobs.get()
        try:
            values = edit(
                job.request, job.files(folder), lambda values: connection.send(("progress", values))
            )
            connection.send(("done", values))
        except Exception as error:  # the next job may be a better one
            connection.send(("failed", _reason(error, folder)))


def _reason(error: Exception, folder: Path) -> str:
    """Return the reason of a failure, without the path of the job's folder."""
    return reason_of(error).replace(f"{folder}{os.sep}", "").replace("`", "")


def _remove_parts(folder: Path) -> None:
    """Remove what a killed child left half-written."""
    for path in folder.glob(".*.part*"):
        path.unlink(missing_ok=True)
