"""A store of the frames that judges see, as JPEG files named by their content."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from rvedit.evaluation.request import FRAMES
from rvedit.io.chat import FrameReader, Journal, Jpeg, file_key, take_frames
from rvedit.io.pool import result_of, start_workers
from rvedit.io.temporary import atomic_path
from rvedit.io.video import VideoReader, probe

_MAX_WORKERS = 16


class FrameStore(FrameReader):
    """Five frames of each clip in `folder/<sha256>.jpg`; an unchanged clip is decoded only once.

    Between `open` and `close`, clips are decoded in worker processes: threads would compete for the GIL with
    the event loop that sends the requests.
    """

    def __init__(self, folder: Path, journal: Journal) -> None:
        super().__init__(FRAMES, journal)
        self.folder = folder
        self._workers: ProcessPoolExecutor | None = None
        self._lock, self._retry_lock = threading.Lock(), threading.Lock()

    def open(self) -> None:
        """Start the worker processes; call it before large objects are in memory, as workers are forked."""
        self._workers = self._workers or self._start_workers()

    def close(self) -> None:
        """Stop the worker processes."""
        if self._workers:
            self._workers.shutdown(cancel_futures=True)
            self._workers = None

    def read(self, clip: Path) -> list[Jpeg]:
        """Return the clip's frames, from the store or decoded. Raises UserError if the clip is damaged."""
        if cached := self.cached(clip):
            paths = [self.folder / f"{frame.sha256}.jpg" for frame in cached]
            if all(path.is_file() for path in paths):
                return [Jpeg(f.sha256, path.read_bytes()) for f, path in zip(cached, paths, strict=True)]
        frames, length = self._decode_in_worker(clip) if self._workers else _decode(clip, self.folder)
        self.store(clip, frames)
        self._remember_length(clip, length)
        return frames

    def length(self, clip: Path) -> int:
        """Return the number of frames of a readable clip."""
        key = file_key("length", clip)
        count = self._journal.get(key) if key else None
        return self._remember_length(clip, probe(clip).num_frames) if count is None else int(count)

    def _remember_length(self, clip: Path, count: int) -> int:
        if key := file_key("length", clip):
            self._journal.put(key, count)
        return count

    def digests(self, clip: Path) -> tuple[str, ...]:
        """Return the digests of the clip's frames; empty if it was not read before."""
        return tuple(frame.sha256 for frame in self.cached(clip) or ())

    @staticmethod
    def _start_workers() -> ProcessPoolExecutor:
        count = min(os.cpu_count() or 1, _MAX_WORKERS)
        workers = start_workers(count)
        wait([workers.submit(time.sleep, 0.02) for _ in range(count)])  # each job starts one process
        return workers

    def _decode_in_worker(self, clip: Path) -> tuple[list[Jpeg], int]:
        """Decode in a worker. A process that dies breaks the pool, so its clips are retried one by one."""
        with self._lock:
            assert self._workers is not None
            try:
                future = self._workers.submit(_decode, clip, self.folder)
            except BrokenProcessPool:
                self._workers = self._start_workers()
                future = self._workers.submit(_decode, clip, self.folder)
        try:
            return future.result()
        except BrokenProcessPool:
            with self._retry_lock, start_workers(1) as worker:
                return result_of(worker.submit(_decode, clip, self.folder))


def _decode(clip: Path, folder: Path) -> tuple[list[Jpeg], int]:
    """Decode a clip's frames, write them to `folder`, and return them with the clip's length."""
    with VideoReader(clip, threads=1) as reader:
        frames = take_frames(reader, FRAMES)
        length = reader.info.num_frames
    for frame in frames:
        path = folder / f"{frame.sha256}.jpg"
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as part:
                part.write_bytes(frame.data)
    return frames, length
