"""The pictures that judges see, kept as files by their content."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from rvedit.evaluation.request import FRAMES
from rvedit.io.chat import Frames, Journal, Jpeg, file_key, take_frames
from rvedit.io.manifest import put_in_place
from rvedit.io.pool import result_of, start_workers
from rvedit.io.video import VideoReader, probe

_MOST_WORKERS = 16


class FrameStore:
    """Five pictures of each clip, in `folder/<sha256>.jpg`; a clip that has not changed is decoded once.

    Between `open` and `close` clips are decoded by processes: threads would take the interpreter's lock from
    the one that talks to the judges.
    """

    def __init__(self, folder: Path, journal: Journal) -> None:
        self.folder = folder
        self._journal = journal
        self._frames = Frames(FRAMES, journal)
        self._workers: ProcessPoolExecutor | None = None
        self._lock, self._alone = threading.Lock(), threading.Lock()

    def open(self) -> None:
        """Start the processes: before much is in memory, as they begin as copies of this one."""
        self._workers = self._workers or self._started()

    def close(self) -> None:
        """End them."""
        if self._workers:
            self._workers.shutdown(cancel_futures=True)
            self._workers = None

    def known(self, clip: Path) -> list[Jpeg] | None:
        """The clip's pictures by their digests alone, where it was read before."""
        return self._frames.known(clip)

    def read(self, clip: Path) -> list[Jpeg]:
        """The clip's pictures, from the store or decoded. Raises UserError for a clip that is damaged."""
        known = self.known(clip)
        if known is not None:
            paths = [self.path(frame.sha256) for frame in known]
            if all(path.is_file() for path in paths):
                return [Jpeg(f.sha256, path.read_bytes()) for f, path in zip(known, paths, strict=True)]
        frames, length = self._in_worker(clip) if self._workers else _decode(clip, self.folder)
        self._frames.remember(clip, frames)
        self._remember_length(clip, length)
        return frames

    def length(self, clip: Path) -> int:
        """Frames of a clip, which must be readable."""
        key = file_key("length", clip)
        count = self._journal.get(key) if key else None
        return self._remember_length(clip, probe(clip).num_frames) if count is None else int(count)

    def _remember_length(self, clip: Path, count: int) -> int:
        if key := file_key("length", clip):
            self._journal.put(key, count)
        return count

    def digests(self, clip: Path) -> tuple[str, ...]:
        """Of the clip's pictures, for the record and the report; none where it was not read."""
        return tuple(frame.sha256 for frame in self.known(clip) or ())

    def path(self, digest: str) -> Path:
        """Where a picture lies."""
        return self.folder / f"{digest}.jpg"

    @staticmethod
    def _started() -> ProcessPoolExecutor:
        count = min(os.cpu_count() or 1, _MOST_WORKERS)
        workers = start_workers(count)
        wait([workers.submit(time.sleep, 0.02) for _ in range(count)])  # one begins with each job
        return workers

    def _in_worker(self, clip: Path) -> tuple[list[Jpeg], int]:
        """A process that dies takes its neighbours' clips with it: each is read once more, by itself."""
        with self._lock:
            assert self._workers is not None
            try:
                future = self._workers.submit(_decode, clip, self.folder)
            except BrokenProcessPool:
                self._workers = self._started()
                future = self._workers.submit(_decode, clip, self.folder)
        try:
            return future.result()
        except BrokenProcessPool:
            with self._alone, start_workers(1) as worker:
                return result_of(worker.submit(_decode, clip, self.folder))


def _decode(clip: Path, folder: Path) -> tuple[list[Jpeg], int]:
    """A clip's pictures, which are kept, and its length."""
    with VideoReader(clip, threads=1) as reader:
        frames = take_frames(reader, FRAMES)
        length = reader.info.num_frames
    for frame in frames:
        path = folder / f"{frame.sha256}.jpg"
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            with put_in_place(path) as part:
                part.write_bytes(frame.data)
    return frames, length
