"""The queue of edits on disk: a folder for each job, which survives a kill of the server."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, Literal

from rvedit.io.errors import UserError
from rvedit.io.manifest import prepare_folder, write_json
from rvedit.io.temporary import remove_stale, temporary_sibling
from rvedit.studio.request import EditFiles, EditRequest, command_line

State = Literal["queued", "running", "done", "failed", "cancelled"]
JOB = "job.json"
VIEW, PREVIEW = "view.mp4", "preview.webp"
_ID = re.compile(r"\d{8}-\d{6}-\d{6}-[0-9a-f]{6}")
_SUFFIX = re.compile(r"\.[a-z0-9]{1,5}")


@dataclass(frozen=True)
class Job:
    """One edit. All files are names in the job's folder."""

    id: str
    request: EditRequest
    name: str
    """Name of the clip as it was uploaded, for display and for the names of downloads."""
    source: str
    mask: str | None = None
    reference: str | None = None
    state: State = "queued"
    error: str | None = None
    output: str | None = None
    num_frames: int | None = None
    width: int | None = None
    height: int | None = None
    seconds: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Return a JSON object, which `from_json` reads."""
        return {**asdict(self), "request": self.request.model_dump(mode="json")}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Job:
        """Return the job. Raises ValueError or TypeError for an object that is none."""
        return cls(**{**values, "request": EditRequest.model_validate(values["request"])})

    def files(self, folder: Path) -> EditFiles:
        """Return the paths of its inputs."""
        mask, reference = (name and folder / name for name in (self.mask, self.reference))
        return EditFiles(folder / self.source, self.name, mask or None, reference or None)

    @property
    def download_name(self) -> str | None:
        """Return the name that the edit is saved under, such as `park_edited.mp4`."""
        return self.output and f"{Path(self.name).stem}_edited{Path(self.output).suffix}"

    @property
    def command(self) -> str:
        """Return the command line that does the same."""
        return command_line(self.request, self.files(Path()))


class JobStore:
    """The jobs in a folder. One server writes there at a time; all methods may be called from any thread.

    A job that was running when a server ended is queued again.
    """

    def __init__(self, root: Path) -> None:
        """Read the jobs. Raises UserError if the folder cannot be used, or another server uses it."""
        self.root = root.resolve()
        self.uploads = self.root / ".uploads"
        prepare_folder(self.root)
        self._lock = _lock_folder(self.root)
        shutil.rmtree(self.uploads, ignore_errors=True)  # jobs have links of their own
        prepare_folder(self.uploads)
        remove_stale(self.root)
        self.changed = threading.Condition()
        """Notified when a job changes."""
        self._jobs: dict[str, Job] = {}
        for path in sorted(self.root.iterdir()):
            if _ID.fullmatch(path.name) and (job := _read_job(path)) is not None:
                self._jobs[job.id] = job
        self._numbers = count(len(self._jobs))
        for job in self.jobs():
            if job.state == "running":
                self.update(job.id, state="queued")

    def jobs(self) -> list[Job]:
        """Return all jobs, the oldest first; those whose folders were deleted are forgotten."""
        with self.changed:
            self._jobs = {job.id: job for job in self._jobs.values() if self.folder(job).is_dir()}
            return list(self._jobs.values())

    def get(self, job_id: str) -> Job:
        """Return a job. Raises UserError if there is none of this id."""
        with self.changed:
            job = self._jobs.get(job_id)
        if job is None or not self.folder(job).is_dir():
            raise UserError(f"no job {job_id}: see /jobs for the ids")
        return job

    def folder(self, job: Job) -> Path:
        """Return the job's folder."""
        return self.root / job.id

    def file(self, job_id: str, name: str) -> Path:
        """Return the path of a file that may be shown of a job. Raises UserError for every other name."""
        job = self.get(job_id)
        path = self.folder(job) / name
        shown = {job.source, job.mask, job.reference, job.output, VIEW, PREVIEW}
        if name not in shown or not path.is_file():
            raise UserError(f"job {job_id} has no file {name}: see `files` in /job")
        return path

    def add(self, request: EditRequest, files: EditFiles) -> Job:
        """Copy the files into a new job's folder and queue it. The folder appears whole or not at all.

        Raises UserError if a file is gone, or the folder cannot be written.
        """
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        inputs = {"source": files.source, "mask": files.mask, "reference": files.reference}
        with self.changed:  # ids are in the order of the jobs
            name = f"{stamp}-{next(self._numbers):06d}-{secrets.token_hex(3)}"
            part = temporary_sibling(self.root / name)
            names: dict[str, Any] = {}
            try:
                part.mkdir()
                for kind, path in inputs.items():
                    if path is not None:
                        names[kind] = kind + safe_suffix(path)
                        _link_or_copy(path, part / names[kind])
                job = Job(name, request, files.name, **names)
                write_json(part / JOB, job.as_json())
                part.rename(self.folder(job))
            except OSError as error:
                raise UserError(
                    f"{files.name}: cannot be queued ({error.strerror}): upload it again, or free space"
                ) from None
            finally:
                shutil.rmtree(part, ignore_errors=True)
            self._jobs[job.id] = job
            self.changed.notify_all()
        return job

    def update(self, job_id: str, if_state: State | None = None, **changes: Any) -> bool:
        """Change fields of a job on disk, if it is in `if_state`, or in any. Return whether it was."""
        with self.changed:
            job = self.get(job_id)
            if if_state is not None and job.state != if_state:
                return False
            job = replace(job, **changes)
            write_json(self.folder(job) / JOB, job.as_json())
            self._jobs[job_id] = job
            self.changed.notify_all()
        return True

    def fail(self, job_id: str, error: str) -> None:
        """Mark a job that has not ended as failed: in memory alone, if its folder cannot be written."""
        with self.changed:
            job = self._jobs.get(job_id)
            if job is not None and job.state in ("queued", "running"):
                self._jobs[job_id] = replace(job, state="failed", error=error)
                self.changed.notify_all()
                with suppress(UserError, OSError):
                    self.update(job_id)

    def wait_for(self, is_ready: Callable[[], bool], timeout: float | None = None) -> bool:
        """Wait until a condition on the jobs holds; return whether it does."""
        with self.changed:
            return self.changed.wait_for(is_ready, timeout)

    def next_queued(self) -> Job | None:
        """Return the oldest job that is queued."""
        return next((job for job in self.jobs() if job.state == "queued"), None)


def safe_suffix(path: Path) -> str:
    """Return a file name's suffix in lower case if it is short and plain, else nothing."""
    suffix = path.suffix.lower()
    return suffix if _SUFFIX.fullmatch(suffix) else ""


def _read_job(folder: Path) -> Job | None:
    """Return the job of a folder, or None with a warning if it cannot be read."""
    try:
        return Job.from_json(json.loads((folder / JOB).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError) as error:
        warnings.warn(f"{folder}: is left out, as its {JOB} cannot be read ({error})", stacklevel=2)
        return None


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copyfile(source, target)


def _lock_folder(folder: Path) -> Any:
    """Lock a folder until the process ends. Raises UserError if another process has locked it."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"{folder}: another `rvedit studio` uses it: open its page, or choose another `folder`"
        ) from None
    return lock
