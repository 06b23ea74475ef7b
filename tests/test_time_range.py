"""`--from`, `--to` and `--fade`: the frames of a range are edited, all others are the source's."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from conftest import random_clip
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_footage import write

from rvedit.editing.config import EditConfig
from rvedit.editing.edit_file import edit_file, write_edit
from rvedit.editing.time_range import Moment, edit_range, frame_range
from rvedit.io.errors import UserError
from rvedit.io.video import VideoReader, frame_times, write_clip

EVEN = [Fraction(n, 10) for n in range(20)]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("7", 7), ("7.5", 7.5), (".5", 0.5), ("0:07.5", 7.5), ("12:30", 750), ("1:02:03.25", 3723.25)],
)
def test_moments_in_seconds(text, seconds):
    assert Moment.parse("start", text) == Moment(Fraction(seconds), False, text)
    assert Moment.parse("start", "75f") == Moment(Fraction(75), True, "75f")


@pytest.mark.parametrize("text", ["", "f", "1:", "-3", "3s", "1:2:3:4", "nan", "1e3", "3.5f"])
def test_other_texts_are_refused(text):
    with pytest.raises(UserError, match=r"`stop` .*: give seconds"):
        Moment.parse("stop", text)


@pytest.mark.parametrize(
    ("start", "stop", "expected"),
    [
        (None, None, (0, 20)),
        ("0.5", "1", (5, 10)),
        ("5f", "10f", (5, 10)),
        ("0.55", "1", (5, 10)),  # the frame that is shown at the start
        ("0.5", "1.01", (5, 11)),  # and the one that begins before the end
        ("0.51", "0.52", (5, 6)),
        ("19f", None, (19, 20)),
        (None, "1f", (0, 1)),
        ("1.95", "2.0", (19, 20)),
        (None, "20f", (0, 20)),
    ],
)
def test_frames_of_a_range(start, stop, expected):
    part = frame_range(EVEN, Fraction(2), start, stop)
    assert (part.first, part.stop) == expected
    assert part.weights == (1.0,) * (part.stop - part.first)


def test_frames_of_a_clip_of_varying_rate():
    times = [Fraction(t, 1000) for t in (0, 40, 55, 130, 300, 310, 900)]
    assert [frame_range(times, Fraction(1), *ends).first for ends in (("0.2", None), ("0.305", None))] == [
        3,
        4,
    ]
    assert frame_range(times, Fraction(1), "0.5", "0.6").first == 5
    assert frame_range(times, Fraction(1), "0.5", "0.6").stop == 6
    assert frame_range(times, Fraction(1), "0.95", None).first == 6


@pytest.mark.parametrize(
    ("start", "stop", "said"),
    [
        ("1", "0.5", "`start` 1 and `stop` 0.5: no frame is between them"),
        ("1", "1", "`start` 1 and `stop` 1: no frame"),
        ("7f", "7f", "no frame is between them"),
        ("2", None, "`start` 2: the clip's 20 frames, 0f to 19f, end at 2 s"),
        ("20f", None, "`start` 20f: the clip's 20 frames"),
        (None, "0:03", "`stop` 0:03: the clip's 20 frames, 0f to 19f, end at 2 s"),
        ("1", "21f", "`stop` 21f: the clip's 20 frames"),
        (None, "0", "the clip's start and `stop` 0: no frame is between them"),
        ("", "1", "`start` : give seconds"),
    ],
)
def test_ranges_that_are_no_ranges(start, stop, said):
    with pytest.raises(UserError, match=said) as error:
        frame_range(EVEN, Fraction(2), start, stop)
    assert "\n" not in str(error.value)


def test_fades_are_inside_the_range_and_not_at_the_clips_ends():
    part = frame_range(EVEN, Fraction(2), "0.5", "1.5", fade=0.4)
    assert part.weights == pytest.approx([0.125, 0.375, 0.625, 0.875, 1, 1, 0.875, 0.625, 0.375, 0.125])
    assert frame_range(EVEN, Fraction(2), None, "0.5", fade=0.2).weights == pytest.approx(
        [1, 1, 1, 0.75, 0.25]
    )
    assert frame_range(EVEN, Fraction(2), "1.5", None, fade=0.2).weights == pytest.approx(
        [0.25, 0.75, 1, 1, 1]
    )
    with pytest.raises(UserError, match="`fade`: needs"):
        frame_range(EVEN, Fraction(2), None, None, fade=1)
    with pytest.raises(UserError, match="`fade` -1"):
        frame_range(EVEN, Fraction(2), "1", None, fade=-1)
    with pytest.raises(UserError, match=r"`fade` 0\.6: the range of 1 s is too short for 2 of it"):
        frame_range(EVEN, Fraction(2), "0.5", "1.5", fade=0.6)


@given(st.data())
def test_only_the_range_is_edited(data):
    count = data.draw(st.integers(1, 30))
    times = [Fraction(n, 10) for n in range(count)]
    first = data.draw(st.integers(0, count - 1))
    stop = data.draw(st.integers(first + 1, count))
    fade = data.draw(st.sampled_from([0, 0.25])) if stop - first >= 5 else 0
    clip = [np.full((1, 1, 3), n, np.uint8) for n in range(count)]
    part = frame_range(times, Fraction(count, 10), f"{first}f", f"{stop}f", fade)

    def edit(frames):
        assert [int(frame[0, 0, 0]) for frame in frames] == list(range(first, stop))
        return (frame + 100 for frame in frames)  # iterated again

    result = [int(frame[0, 0, 0]) for frame in edit_range(clip, edit, part)]
    expected = [n + (100 * part.weights[n - first] if first <= n < stop else 0) for n in range(count)]
    assert result == pytest.approx(expected, abs=0.51)


def container(folder, kind):
    """A clip of 7 frames, as a file of this kind, and the times of its frames in seconds."""
    times = [0, 40, 55, 130, 300, 310, 900]
    if kind == "varying rate":
        write(folder / "clip.mp4", (64, 48), times, "yuv420p")
        return folder / "clip.mp4", [t / 1000 for t in times]
    clip = random_clip(7, 48, 64)
    if kind == "folder":
        (folder / "clip").mkdir()
        for number, frame in enumerate(clip):
            Image.fromarray(frame).save(folder / "clip" / f"{number}.png")
        return folder / "clip", [n / 24 for n in range(7)]
    if kind == "gif":
        write_clip(folder / "clip.gif", clip, 10)
        return folder / "clip.gif", [n / 10 for n in range(7)]
    write_clip(folder / "clip.mp4", clip, 10)
    return folder / "clip.mp4", [n / 10 for n in range(7)]


@pytest.mark.parametrize("kind", ["video", "varying rate", "folder", "gif"])
@pytest.mark.parametrize(("first", "stop"), [(2, 5), (0, 1), (6, 7), (3, 4)])
def test_frames_outside_are_bit_equal_in_every_kind_of_clip(
    tmp_path, monkeypatch, tiny_pipeline, kind, first, stop
):
    """Before they are encoded; times, and so the length, are the source's."""
    path, seconds = container(tmp_path, kind)
    written = []
    monkeypatch.setattr(
        "rvedit.editing.edit_file.VideoWriter.write", lambda self, *given: written.append(given)
    )
    with VideoReader(path) as reader:
        times, end = frame_times(reader.info)
        assert [float(t) for t in times] == pytest.approx(seconds, abs=1e-3)
        assert end > times[-1]
        part = frame_range(times, end, f"{first}f", f"{stop}f")
        originals = list(reader)
        monkeypatch.setattr(
            "rvedit.editing.edit_file.VideoWriter.__exit__", lambda self, *_: self._sink.discard()
        )
        edit_file(reader, "make it red", tmp_path / "out.mkv", tiny_pipeline, part=part)
    assert len(written) == 7
    for number, ((frame, pts, _), original) in enumerate(zip(written, originals, strict=True)):
        assert pts == original.pts
        assert np.array_equal(frame, original.frame) != (first <= number < stop)


def test_a_written_range_is_read_back(tmp_path):
    """The passing frames are written with their own times."""
    path, _ = container(tmp_path, "varying rate")
    with VideoReader(path) as reader:
        part = frame_range(*frame_times(reader.info), "2f", "4f")
        invert = lambda frames: (255 - frame for frame in frames)  # noqa: E731
        write_edit(reader, lambda frames: edit_range(frames, invert, part), tmp_path / "out.mp4")
        source = list(reader)
    with VideoReader(tmp_path / "out.mp4") as reader:
        result = list(reader)
    distances = [np.abs(a.frame.astype(int) - b.frame).mean() for a, b in zip(source, result, strict=True)]
    assert [distance > 20 for distance in distances] == [False, False, True, True, False, False, False]
    assert [frame.pts for frame in source] == [frame.pts for frame in result]


def test_masks_of_a_range_are_those_of_its_frames(tmp_path, tiny_pipeline):
    path, _ = container(tmp_path, "video")
    masks = np.zeros((7, 48, 64), bool)
    masks[3] = True
    with VideoReader(path) as reader:
        part = frame_range(*frame_times(reader.info), "2f", "5f")
        edit_file(
            reader, "red", tmp_path / "out.mkv", tiny_pipeline, EditConfig(mask=masks, detail=0), part=part
        )
        source = list(reader)
    with VideoReader(tmp_path / "out.mkv") as reader:
        result = list(reader)
    distances = [np.abs(a.frame.astype(int) - b.frame).mean() for a, b in zip(source, result, strict=True)]
    assert [distance > 10 for distance in distances] == [number == 3 for number in range(7)]
