"""Footage as it comes: 4K, 10-bit, upright, of odd size, of varying rate, long; memory is bounded."""

import gc
import os
import tracemalloc
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import make_pipeline
from processes import rvedit

from rvedit.editing.config import EditConfig
from rvedit.editing.edit_file import write_edit
from rvedit.editing.long_video import edit_video
from rvedit.io.video import VideoReader

A_4K_FRAME = 3840 * 2160 * 3
AN_HD_FRAME = 1280 * 720 * 3
linux = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")


def resident() -> int:
    """Bytes of memory that the process holds now."""
    return os.sysconf("SC_PAGE_SIZE") * int(Path("/proc/self/statm").read_text().split()[1])


def write(path: Path, size: tuple[int, int], times: list[int], pix_fmt: str) -> None:
    """A ball over a ramp, at `times` in milliseconds."""
    width, height = size
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.codec_context.time_base = Fraction(1, 1000)
        ramp = np.linspace(60, 200, width, dtype=np.uint8)
        for index, time in enumerate(times):
            picture = np.broadcast_to(ramp[None, :, None], (height, width, 3)).copy()
            side, left = height // 4, (index * width // 64) % (width // 2)
            picture[side : 2 * side, left : left + side] = (220, 40, 40)
            frame = av.VideoFrame.from_ndarray(picture).reformat(format=pix_fmt)
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "pix_fmt", "times"),
    [
        ((3840, 2160), "yuv420p10le", [40 * i for i in range(6)]),
        ((271, 481), "yuv444p", [40 * i for i in range(6)]),
        ((320, 180), "yuv420p", [0, 40, 55, 130, 300, 310, 900]),
    ],
    ids=["4K in 10 bits", "upright and odd", "varying rate"],
)
def test_footage_comes_back_as_it_went_in(tmp_path, size, pix_fmt, times):
    write(tmp_path / "clip.mp4", size, times, pix_fmt)
    rvedit("edit", "clip.mp4", "make it sepia", "--steps", 1, "--preserve", cwd=tmp_path, check=0)
    with VideoReader(tmp_path / "clip.mp4") as source, VideoReader(tmp_path / "clip_edited.mp4") as edited:
        before, after = list(source), list(edited)
        seconds = [
            float(t.pts * r.info.time_base) for r, clip in ((source, before), (edited, after)) for t in clip
        ]
        assert (edited.info.width, edited.info.height) == size
    assert len(before) == len(after) == len(times)
    assert seconds[len(times) :] == pytest.approx(seconds[: len(times)], abs=1e-4)
    assert seconds[: len(times)] == pytest.approx([t / 1000 for t in times], abs=1e-3)
    assert not np.array_equal(before[0].frame, after[0].frame)


@pytest.mark.slow
@linux
def test_a_4k_clip_is_read_in_bounded_memory(tmp_path):
    """The frames as FFmpeg holds them are no Python objects: they must go without the garbage collector."""
    write(tmp_path / "clip.mp4", (3840, 2160), [40 * i for i in range(24)], "yuv420p")
    gc.disable()
    try:
        with VideoReader(tmp_path / "clip.mp4", threads=1) as reader:
            held = [resident() for _ in reader]
    finally:
        gc.enable()
    assert max(held[8:]) - max(held[:8]) < 4 * A_4K_FRAME  # in yuv the 16 are worth 8


@pytest.mark.slow
@linux
def test_a_longer_clip_takes_no_more_memory_to_edit(tmp_path, tiny_tokenizer):
    """Also with --preserve and detail transfer, which read the source again; the encoder holds few frames."""
    held = []

    def observed(source):
        for frame in edit_video(make_pipeline(tiny_tokenizer), source, "make it sepia", settings):
            held.append(resident())
            yield frame

    write(tmp_path / "clip.mp4", (1280, 720), [40 * i for i in range(97)], "yuv420p")
    settings = EditConfig(num_inference_steps=1, preserve=True)
    with VideoReader(tmp_path / "clip.mp4") as reader:
        write_edit(reader, observed, tmp_path / "edited.mp4")
    assert len(held) == 97
    # A window's temporary memory comes and goes, and the encoder's queues fill: a leak raises the lowest
    # count too. The 48 frames between would be worth 24 in yuv.
    assert min(held[81:]) - min(held[33:49]) < 16 * AN_HD_FRAME


@pytest.mark.slow
@linux
def test_ten_times_the_length_takes_no_more_memory(tiny_tokenizer):
    """A minute at 12 frames a second against 6 seconds: nothing that is kept grows.

    numpy's own count sees frames that are kept, also those of the model's size; the system's all the rest.
    """
    pipeline = make_pipeline(tiny_tokenizer)
    pipeline.register_to_config(window_frames=33, window_stride=24)
    part = 6 * 12

    def frames() -> Iterator[np.ndarray]:
        for index in range(10 * part):
            yield np.full((64, 64, 3), index % 251, np.uint8)

    held, counted = [], []
    tracemalloc.start()
    try:
        for _ in edit_video(pipeline, frames(), "make it sepia", num_inference_steps=1):
            held.append(resident())
            counted.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert len(held) == 10 * part
    assert max(held[part:]) - max(held[:part]) < 30e6
    # 648 frames more would be 4 MB at the model's size.
    assert max(counted[part:]) - max(counted[:part]) < 1e6
