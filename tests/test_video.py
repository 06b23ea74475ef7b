"""Clips in, clips out: small real files, written here with PyAV, read and rewritten."""

from __future__ import annotations

import struct
import tracemalloc
import warnings
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from rvedit.io.errors import UserError
from rvedit.io.video import (
    OUTPUT_SUFFIXES,
    VideoInfo,
    VideoReader,
    VideoWriter,
    frame_times,
    probe,
    side_by_side,
    write_clip,
)

CODECS = {".avi": "mpeg4", ".webm": "libvpx-vp9", ".gif": "gif"}
VFR = [0, 33, 50, 117, 300, 500, 501, 1040, 1100]  # milliseconds


def picture(index: int = 0, width: int = 64, height: int = 48) -> np.ndarray:
    """A frame that compresses well, tells its index by its grey and up from down and left from right."""
    frame = np.full((height, width, 3), 40 + 10 * (index % 15), np.uint8)
    frame[: height // 2, : width // 2] = (220, 30, 30)
    frame[: height // 2, width // 2 :] = (30, 200, 30)
    return frame


def noise(index: int, width: int = 64, height: int = 48) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 255, (height, width, 3), dtype=np.uint8)


def make_clip(
    path: Path,
    *,
    times=range(10),
    time_base=Fraction(1, 10),
    size=(64, 48),
    frames=picture,
    codec=None,
    pix_fmt=None,
    audio=(),
    rotation=None,
    tags=None,
    options=None,
    container_options=None,
    aspect=None,
    layout="mono",
):
    """Write a clip; `audio` names the codec of each sound stream, `tags` are codec context attributes."""
    codec = codec or CODECS.get(path.suffix, "libx264")
    with av.open(str(path), "w", options=container_options or {}) as container:
        video = container.add_stream(codec, rate=round(1 / time_base) if time_base > Fraction(1, 99) else 25)
        video.width, video.height = size
        video.pix_fmt = pix_fmt or ("gray" if codec == "gif" else "yuv420p")
        video.options = options or {"crf": "5"}
        video.codec_context.time_base = video.time_base = time_base
        if aspect:
            video.codec_context.sample_aspect_ratio = aspect
        for name, value in (tags or {}).items():
            setattr(video.codec_context, name, value)
        if rotation:
            video.set_display_rotation(**rotation)
        sounds = [container.add_stream(name, rate=48000) for name in audio]
        for sound in sounds:
            sound.layout = layout
        for index, pts in enumerate(times):
            rgb = av.VideoFrame.from_ndarray(frames(index, *size), format="rgb24")
            rgb = rgb.reformat(
                format=video.pix_fmt,
                dst_colorspace=(tags or {}).get("colorspace", 5),
                src_color_range=2,
                dst_color_range=2 if codec == "gif" else (tags or {}).get("color_range", 1),
            )
            rgb.pts, rgb.time_base = pts, time_base
            container.mux(video.encode(rgb))
        container.mux(video.encode(None))
        seconds = float((list(times)[-1] + 1) * time_base)
        for number, sound in enumerate(sounds):
            wave = np.sin(np.arange(int(seconds * 48000)) * (number + 1) / 20)[None]
            form = sound.codec_context.format.name
            dtype, peak = {"flt": (np.float32, 1), "s16": (np.int16, 2**14), "s32": (np.int32, 2**30)}[
                form[:3]
            ]
            channels = sound.layout.nb_channels
            wave = wave.repeat(channels, 0 if form.endswith("p") else 1)
            frame = av.AudioFrame.from_ndarray((wave * peak).astype(dtype), form, layout)
            frame.sample_rate, frame.pts, frame.time_base = 48000, 0, Fraction(1, 48000)
            container.mux(sound.encode(frame))
            container.mux(sound.encode(None))
    return path


def rewrite(source: Path, output: Path, **options) -> VideoInfo:
    with VideoReader(source) as reader, VideoWriter(output, like=reader.info, **options) as writer:
        for frame, pts, duration in reader:
            writer.write(frame, pts, duration)
    return probe(output)


def seconds(path: Path) -> list[float]:
    with VideoReader(path) as reader:
        return [float(pts * reader.info.time_base) for _, pts, _ in reader]


def first_frame(path: Path) -> np.ndarray:
    with VideoReader(path) as reader:
        return next(iter(reader)).frame


def sound_packets(path: Path) -> list[list[tuple[float, bytes]]]:
    with av.open(str(path)) as container:
        streams: dict[int, list[tuple[float, bytes]]] = {s.index: [] for s in container.streams.audio}
        for packet in container.demux(*container.streams.audio) if streams else ():
            if packet.size:
                streams[packet.stream_index].append((float(packet.pts * packet.time_base), bytes(packet)))
        return list(streams.values())


def fails(function, *parts: str):
    """Calls `function`, which must raise a one-line UserError that has every part in it."""
    with pytest.raises(UserError) as caught:
        function()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


# What can be read


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm", ".avi", ".gif", ".ts"])
def test_reads_every_container(tmp_path, suffix):
    path = make_clip(tmp_path / f"clip{suffix}")
    with VideoReader(path) as reader:
        frames = list(reader)
    info = reader.info
    assert (info.kind, info.width, info.height, info.num_frames) == ("video", 64, 48, 10)
    assert not info.truncated
    assert not info.has_audio
    assert info.duration == pytest.approx(1, abs=0.01)
    assert info.frame_rate == 10
    assert len(frames) == 10
    for index, timed in enumerate(frames):
        assert timed.frame.shape == (48, 64, 3)
        assert timed.frame.dtype == np.uint8
        assert np.abs(timed.frame[40, 40].astype(int) - (40 + 10 * index)).max() < 20
    times = np.array([timed.pts * float(info.time_base) for timed in frames])
    assert np.allclose(times - times[0], np.arange(10) / 10, atol=0.002)


def test_reading_again_starts_again(tmp_path):
    with VideoReader(make_clip(tmp_path / "a.mp4")) as reader:
        next(iter(reader))
        assert len(list(reader)) == 10


def test_ten_bit_input(tmp_path):
    path = make_clip(tmp_path / "a.mkv", pix_fmt="yuv420p10le")
    assert probe(path).pix_fmt == "yuv420p10le"
    assert np.abs(first_frame(path).astype(int) - picture()).mean() < 4
    info = rewrite(path, tmp_path / "b.mp4")
    assert info.pix_fmt == "yuv420p"
    assert np.abs(first_frame(tmp_path / "b.mp4").astype(int) - picture()).mean() < 4


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_still_image_is_a_clip_of_one_frame(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    Image.fromarray(picture()).save(path)
    info = probe(path)
    assert (info.kind, info.num_frames, info.width, info.height) == ("image", 1, 64, 48)
    assert np.abs(first_frame(path).astype(int) - picture()).mean() < 4
    info = rewrite(path, tmp_path / f"b{suffix}")
    assert np.abs(first_frame(tmp_path / f"b{suffix}").astype(int) - picture()).mean() < 4
    with VideoWriter(tmp_path / f"c{suffix}", like=info) as writer:
        writer.write(picture(), 0)
        with pytest.raises(ValueError, match="one frame"):
            writer.write(picture(), 1)
    info = rewrite(path, tmp_path / "b.mp4")
    assert info.num_frames == 1
    assert info.duration == pytest.approx(1 / 24, abs=1e-3)
    assert np.abs(first_frame(tmp_path / "b.mp4").astype(int) - picture()).mean() < 4


def test_image_orientation_and_depth(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    Image.fromarray(picture()).save(tmp_path / "a.jpg", exif=exif, quality=95)
    assert (probe(tmp_path / "a.jpg").width, probe(tmp_path / "a.jpg").height) == (48, 64)
    assert np.abs(first_frame(tmp_path / "a.jpg").astype(int) - np.rot90(picture(), -1)).mean() < 4
    Image.fromarray(np.full((4, 4), 0x8000, np.uint16)).save(tmp_path / "deep.png")
    assert (first_frame(tmp_path / "deep.png") == 0x80).all()


def test_folder_of_images_in_natural_order(tmp_path):
    for number in (10, 2, 1):
        Image.fromarray(np.full((4, 6, 3), number, np.uint8)).save(tmp_path / f"frame{number}.png")
    (tmp_path / "notes.txt").write_text("not a frame")
    with VideoReader(tmp_path) as reader:
        assert [int(frame[0, 0, 0]) for frame, _, _ in reader] == [1, 2, 10]
    assert (reader.info.kind, reader.info.num_frames, reader.info.frame_rate) == ("folder", 3, 24)


def test_folder_errors(tmp_path):
    fails(lambda: probe(tmp_path), str(tmp_path), "no images")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    Image.new("RGB", (8, 9)).save(tmp_path / "b.png")
    fails(lambda: probe(tmp_path), "b.png", "8x9", "8x8")
    (tmp_path / "b.png").write_bytes(b"not an image")
    fails(lambda: probe(tmp_path), "b.png", "not an image")


@pytest.mark.parametrize(
    "rotation",
    [{"degrees": 90}, {"degrees": 180}, {"degrees": -90}, {"degrees": 0, "hflip": True}],
    ids=["90", "180", "270", "mirrored"],
)
def test_rotation_is_applied_once(tmp_path, rotation):
    path = make_clip(tmp_path / "a.mp4", rotation=rotation, aspect=Fraction(4, 3))
    with av.open(str(path)) as container:
        assert "DISPLAYMATRIX" in next(container.decode(video=0)).side_data
    expected = np.rot90(picture(), rotation["degrees"] // 90)
    expected = expected[:, ::-1] if rotation.get("hflip") else expected
    assert np.abs(first_frame(path).astype(int) - expected).mean() < 4
    info = rewrite(path, tmp_path / "b.mp4")
    assert (info.height, info.width) == expected.shape[:2]
    assert info.pixel_aspect == (Fraction(3, 4) if info.height > info.width else Fraction(4, 3))
    with av.open(str(tmp_path / "b.mp4")) as container:
        frame = next(container.decode(video=0))
    assert "DISPLAYMATRIX" not in frame.side_data
    assert np.abs(frame.to_ndarray(format="rgb24").astype(int) - expected).mean() < 6


# The twin's size, times and colours


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm", ".gif"])
@pytest.mark.parametrize("size", [(64, 48), (63, 47), (33, 20), (2, 2), (1, 1)])
def test_size_is_kept(tmp_path, suffix, size):
    make_clip(tmp_path / "a.mkv", size=size, pix_fmt="yuv444p", times=range(3))
    info = rewrite(tmp_path / "a.mkv", tmp_path / f"b{suffix}")
    assert ((info.width, info.height), info.num_frames) == (size, 3)
    if suffix in (".mp4", ".mov", ".mkv"):
        assert info.pix_fmt == ("yuv444p" if size[0] % 2 or size[1] % 2 else "yuv420p")
    wrong = first_frame(tmp_path / f"b{suffix}").astype(int) - first_frame(tmp_path / "a.mkv")
    # A 4:2:0 picture of a few pixels has only one colour, so there the brightness must do.
    assert np.median(np.abs(wrong)) < 8 if min(size) > 2 else abs(wrong.mean()) < 20


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm"])
@pytest.mark.parametrize(
    ("times", "time_base"),
    [
        (VFR, Fraction(1, 1000)),
        ([5000 + t for t in VFR], Fraction(1, 1000)),
        ([7 + t for t in range(20)], Fraction(1001, 30000)),
        ([123456 + 50000 * t for t in range(10)], Fraction(1, 1_200_000)),
    ],
    ids=["variable", "late", "ntsc", "fine"],
)
def test_times_survive(tmp_path, suffix, times, time_base):
    fine = {"movie_timescale": "90000"}  # a late start's precision in an MP4
    source = make_clip(tmp_path / "a.mp4", times=times, time_base=time_base, container_options=fine)
    assert seconds(source) == pytest.approx([float(t * time_base) for t in times], abs=2e-5)
    info = rewrite(source, tmp_path / f"b{suffix}")
    assert info.num_frames == len(times)
    exact = suffix in (".mp4", ".mov")
    assert seconds(tmp_path / f"b{suffix}") == pytest.approx(seconds(source), abs=2e-5 if exact else 1e-3)


def test_last_duration_survives(tmp_path):
    source = make_clip(tmp_path / "a.mp4", times=[0, 1, 2, 3])
    with VideoReader(source) as reader, VideoWriter(tmp_path / "b.mp4", like=reader.info) as writer:
        for index, (frame, pts, duration) in enumerate(reader):
            writer.write(frame, pts, duration * 5 if index == 3 else duration)
    assert probe(tmp_path / "b.mp4").duration == pytest.approx(0.8)


def test_frames_before_zero_are_not_lost(tmp_path):
    """Containers drop what starts before zero, so all moves later, the sound in step."""
    source = make_clip(tmp_path / "a.mp4", times=range(10), audio=["aac"])
    info = probe(source)
    ticks = round(Fraction(1, 10) / info.time_base)
    with VideoWriter(tmp_path / "b.mp4", like=info) as writer:
        for index in range(10):
            writer.write(picture(index), (index - 3) * ticks)
    assert seconds(tmp_path / "b.mp4") == pytest.approx([index / 10 for index in range(10)])
    before, after = sound_packets(source)[0], sound_packets(tmp_path / "b.mp4")[0]
    assert [data for _, data in after] == [data for _, data in before]
    assert after[5][0] - before[5][0] == pytest.approx(0.3, abs=2e-3)


def test_flat_frames_of_a_gif_come_back(tmp_path):
    """Each frame has its own palette, so that equal indices may be different colors."""
    clip = np.zeros((5, 48, 64, 3), np.uint8)
    clip[1:3, 10:20, 20:30] = 255
    clip[4] = 90
    write_clip(tmp_path / "a.gif", clip, 10)
    with VideoReader(tmp_path / "a.gif") as reader:
        frames = np.stack([timed.frame for timed in reader])
    assert frames.shape == clip.shape
    assert np.abs(frames.astype(int) - clip).max() < 8


def test_gif_times_and_colors(tmp_path):
    source = make_clip(
        tmp_path / "a.mkv", times=[200 + t for t in VFR if t != 501], time_base=Fraction(1, 1000)
    )
    info = rewrite(source, tmp_path / "b.gif")
    assert info.num_frames == len(VFR) - 1
    assert seconds(tmp_path / "b.gif") == pytest.approx([t - 0.2 for t in seconds(source)], abs=0.0051)
    assert np.abs(first_frame(tmp_path / "b.gif").astype(int) - first_frame(source)).mean() < 4
    rewrite(tmp_path / "b.gif", tmp_path / "c.mp4")
    assert seconds(tmp_path / "c.mp4") == pytest.approx(seconds(tmp_path / "b.gif"))


@pytest.mark.parametrize(("delay", "shown"), [(0, 10), (1, 10), (2, 2), (7, 7)])
def test_delays_of_a_gif_are_those_of_browsers(tmp_path, delay, shown):
    """In 1/100 s: shorter ones than 2 are shown as 10."""
    first, *others = (Image.fromarray(picture(index)) for index in range(4))
    first.save(tmp_path / "a.gif", save_all=True, append_images=others, duration=delay * 10)
    info = probe(tmp_path / "a.gif")
    expected = [index * shown / 100 for index in range(4)]
    assert seconds(tmp_path / "a.gif") == pytest.approx(expected)
    assert [float(time) for time in frame_times(info)[0]] == pytest.approx(expected)
    assert (info.duration, info.frame_rate) == (pytest.approx(shown / 25), Fraction(100, shown))


@pytest.mark.parametrize(("rate", "count"), [(25, 25), (50, 50), (60, 50), (120, 50)])
def test_a_fast_clip_keeps_its_length_as_a_gif(tmp_path, rate, count):
    times = [index * 1000 // rate for index in range(rate)]
    source = make_clip(tmp_path / "a.mkv", times=times, time_base=Fraction(1, 1000))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        info = rewrite(source, tmp_path / "b.gif")
    assert abs(info.num_frames - count) <= 1
    assert info.duration == pytest.approx(1, abs=0.05)
    assert np.diff(seconds(tmp_path / "b.gif")).min() > 0.019
    assert len(caught) == (rate > 50)
    assert all("at most 50 frames per second" in str(warning.message) for warning in caught)


@pytest.mark.parametrize(("suffix", "size", "is_said"), [
    (".mp4", (63, 48), True), (".mov", (64, 47), True), (".mkv", (63, 47), True),
    (".mp4", (64, 48), False), (".webm", (63, 47), False),
])  # fmt: skip
def test_odd_sizes_that_few_players_show_are_said(tmp_path, suffix, size, is_said):
    source = make_clip(tmp_path / "a.mkv", size=size, pix_fmt="yuv444p", times=range(3))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rewrite(source, tmp_path / f"b{suffix}")
    assert len(caught) == is_said
    for warning in caught:
        assert f"odd size ({size[0]}x{size[1]})" in str(warning.message)
        assert ".webm" in str(warning.message)


def with_clean_aperture(path: Path, width: int, height: int) -> Path:
    """Add a `clap` box to an MP4 whose index follows its data: its middle of this size is shown."""
    data = bytearray(path.read_bytes())
    box = struct.pack(">I4s8I", 40, b"clap", width, 1, height, 1, 0, 1, 0, 1)
    index = data.index(b"moov")
    for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1"):
        start = data.index(name, index) - 4
        size = int.from_bytes(data[start : start + 4], "big")
        data[start : start + 4] = (size + len(box)).to_bytes(4, "big")
    place = data.index(b"avcC", index) - 4
    data[place:place] = box
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_what_a_container_crops_is_not_shown(tmp_path, suffix):
    source = with_clean_aperture(make_clip(tmp_path / "source.mp4", times=range(3)), 40, 24)
    path = tmp_path / f"a{suffix}"
    with av.open(str(source)) as container, av.open(str(path), "w") as copy:
        stream = copy.add_stream_from_template(container.streams.video[0])
        for packet in container.demux(video=0):
            if packet.size:
                packet.stream = stream
                copy.mux(packet)
    path = source if suffix == ".mp4" else path
    info = probe(path)
    assert (info.width, info.height) == (40, 24)
    assert np.abs(first_frame(path).astype(int) - picture()[12:36, 12:52]).mean() < 4
    info = rewrite(path, tmp_path / "b.mp4")
    assert (info.width, info.height) == (40, 24)


def bars(index: int, width: int, height: int) -> np.ndarray:
    frame = np.zeros((height, width, 3), np.uint8)
    for band, color in enumerate([(235, 20, 20), (20, 235, 20), (20, 20, 235), (128, 128, 128)]):
        frame[:, band * width // 4 : (band + 1) * width // 4] = color
    return frame


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm"])
@pytest.mark.parametrize(
    "tags",
    [
        {"colorspace": 1, "color_range": 1, "color_primaries": 1, "color_trc": 1},
        {"colorspace": 6, "color_range": 1, "color_primaries": 6, "color_trc": 6},
        {"colorspace": 1, "color_range": 2, "color_primaries": 1, "color_trc": 13},
        {"colorspace": 5, "color_range": 2, "color_primaries": 5, "color_trc": 6},
        {"colorspace": 9, "color_range": 1, "color_primaries": 9, "color_trc": 14},
    ],
    ids=["bt709", "bt601", "bt709-full", "bt601-full", "bt2020"],
)
def test_colors_and_tags_survive(tmp_path, suffix, tags):
    coded = tags | {"colorspace": {6: 5}.get(tags["colorspace"], tags["colorspace"])}
    source = make_clip(tmp_path / "a.mp4", frames=bars, tags=coded, times=range(3), size=(96, 48))
    twin = rewrite(source, tmp_path / f"b{suffix}")
    info = probe(source)
    names = ("colorspace", "color_range", "color_primaries", "color_trc")
    assert [getattr(info, name) for name in names] == [coded[name] for name in names]
    assert [getattr(twin, name) for name in names] == [coded[name] for name in names]
    for path in (source, tmp_path / f"b{suffix}"):
        frame = first_frame(path).astype(int)
        for band in range(4):  # away from the edges, where 4:2:0 mixes neighbours
            inside = slice(band * 24 + 6, band * 24 + 18)
            assert np.abs(frame[10:38, inside] - bars(0, 96, 48)[10:38, inside]).max() <= 6


@pytest.mark.parametrize(("size", "matrix"), [((64, 48), 5), ((1280, 720), 1), ((720, 1280), 1)])
def test_untagged_colors_are_read_as_players_do(tmp_path, size, matrix):
    path = tmp_path / "a.mp4"
    fast = {"preset": "ultrafast"}
    make_clip(path, frames=bars, size=size, times=range(1), tags={"colorspace": matrix}, options=fast)
    assert probe(path).matrix == matrix
    # The same samples with the tag struck out of the H.264 headers, as most clips have none.
    with av.open(str(path)) as source, av.open(str(tmp_path / "b.mp4"), "w") as output:
        video = output.add_stream("libx264", rate=10, options=fast)
        video.width, video.height = size
        for frame in source.decode(video=0):
            plain = av.VideoFrame.from_ndarray(frame.to_ndarray(), format="yuv420p")
            plain.pts = 0
            output.mux(video.encode(plain))
        output.mux(video.encode(None))
    assert probe(tmp_path / "b.mp4").colorspace == 2
    center = first_frame(tmp_path / "b.mp4")[size[1] // 2, size[0] // 8]
    assert np.abs(center.astype(int) - (235, 20, 20)).max() <= 8
    twin = rewrite(tmp_path / "b.mp4", tmp_path / "c.mp4", preset="ultrafast")
    assert twin.colorspace == 2


def test_a_compared_size_does_not_change_colors(tmp_path):
    """A width that moves an untagged clip across the players' line gets an explicit tag."""
    like = probe(make_clip(tmp_path / "a.mp4", size=(400, 800), times=range(1)))
    assert (like.colorspace, like.matrix) == (2, 5)
    with VideoWriter(tmp_path / "b.mp4", like=like, width=802) as writer:
        writer.write(bars(0, 802, 800), 0)
    assert probe(tmp_path / "b.mp4").colorspace == 5
    assert np.abs(first_frame(tmp_path / "b.mp4")[400, 100].astype(int) - (235, 20, 20)).max() <= 8


# Sound


def test_sound_that_nobody_knows_is_left_out(tmp_path):
    """Such as a phone's spatial sound beside the plain one: no decoder, no name."""
    path = make_clip(tmp_path / "a.mkv", audio=["aac"], times=range(10))
    path.write_bytes(path.read_bytes().replace(b"A_AAC", b"A_ZZZ"))
    with pytest.warns(UserWarning, match="its unknown audio is left out of"):
        rewrite(path, tmp_path / "b.mkv")
    assert not probe(tmp_path / "b.mkv").has_audio


def test_a_picture_beyond_all_measure_is_refused(tmp_path, monkeypatch):
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UserError, match=r"huge\.png: has more than 0 million pixels"):
        probe(tmp_path / "huge.png")


@pytest.mark.parametrize(
    ("source", "target", "codecs"),
    [
        ("a.mp4", "b.mp4", ["aac"]),
        ("a.mp4", "b.mov", ["aac", "aac"]),
        ("a.mp4", "b.mkv", ["aac"]),
        ("a.mkv", "b.mp4", ["aac", "libmp3lame"]),
        ("a.webm", "b.webm", ["libopus", "libopus"]),
        ("a.mkv", "b.webm", ["libopus"]),
    ],
)
def test_sound_is_copied_in_step(tmp_path, source, target, codecs):
    path = make_clip(tmp_path / source, audio=codecs, times=range(30))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rewrite(path, tmp_path / target).has_audio
    before, after = sound_packets(path), sound_packets(tmp_path / target)
    assert len(after) == len(codecs)
    shift = seconds(tmp_path / target)[0] - seconds(path)[0]
    assert abs(shift) < 0.03
    for old, new in zip(before, after, strict=True):
        assert [data for _, data in new] == [data for _, data in old]
        assert [time - shift for time, _ in new] == pytest.approx([time for time, _ in old], abs=2e-3)


@pytest.mark.parametrize("target", ["b.webm", "b.gif"])
def test_sound_that_does_not_fit_is_dropped_with_a_warning(tmp_path, target):
    path = make_clip(tmp_path / "a.mp4", audio=["aac"])
    with pytest.warns(UserWarning, match=r"a\.mp4.* aac .*left out"):
        info = rewrite(path, tmp_path / target)
    assert (info.has_audio, info.num_frames) == (False, 10)


def test_a_shorter_edit_has_shorter_sound(tmp_path):
    path = make_clip(tmp_path / "a.mp4", audio=["aac"], times=range(30))
    with VideoReader(path) as reader, VideoWriter(tmp_path / "b.mp4", like=reader.info) as writer:
        for timed, _ in zip(reader, range(10), strict=False):
            writer.write(*timed)
    assert 0.9 < sound_packets(tmp_path / "b.mp4")[0][-1][0] < 1.1


# Broken input


def test_input_errors(tmp_path):
    fails(lambda: VideoReader(tmp_path / "none.mp4"), "none.mp4", "no such file")
    for name in ("notes.txt", "notes.mp4"):
        (tmp_path / name).write_text("not a video\n" * 200)
        fails(lambda name=name: VideoReader(tmp_path / name), name, "not a video")
    (tmp_path / "empty.mp4").touch()
    fails(lambda: VideoReader(tmp_path / "empty.mp4"), "empty.mp4", "not a video")
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        sound = container.add_stream("aac", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4800), np.float32), "fltp", "mono")
        frame.sample_rate = 48000
        container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    fails(lambda: VideoReader(tmp_path / "sound.mp4"), "sound.mp4", "no video stream")


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm"])
@pytest.mark.parametrize("keep", [0.5, 0.8])
def test_a_file_cut_short(tmp_path, name, keep):
    whole = make_clip(
        tmp_path / name,
        frames=noise,
        times=range(30),
        audio=["libopus"],
        container_options={"movflags": "faststart"} if name.endswith("mp4") else {},
    )
    path = tmp_path / f"cut-{name}"
    path.write_bytes(whole.read_bytes()[: int(keep * whole.stat().st_size)])
    assert probe(path).truncated
    fails(lambda: VideoReader(path), path.name, "is truncated after frame", "`allow_truncated`")
    with (
        VideoReader(path, allow_truncated=True) as reader,
        pytest.warns(UserWarning, match="ends after frame"),
    ):
        count = len(list(reader))
    assert 30 * keep - 4 < count < 30
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reader = VideoReader(path, allow_truncated=True)
        with VideoWriter(tmp_path / "b.mkv", like=reader.info) as writer:
            for timed in reader:
                writer.write(*timed)
    assert probe(tmp_path / "b.mkv").num_frames == count


def test_an_mp4_without_its_index(tmp_path):
    path = make_clip(tmp_path / "a.mp4", frames=noise)
    path.write_bytes(path.read_bytes()[:20000])
    for allow in (False, True):
        fails(
            lambda allow=allow: VideoReader(path, allow_truncated=allow),
            "a.mp4",
            "not a video that can be read",
        )


@pytest.mark.parametrize("intact", [0, 0.5], ids=["whole", "half"])  # half is concealed, not refused
def test_a_frame_damaged_in_the_middle(tmp_path, intact):
    path = make_clip(tmp_path / "a.mp4", times=range(30), options={"bf": "0", "g": "1"}, frames=noise)
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    size = packets[15].size
    start = packets[15].pos + int(intact * size)
    data[start : start + size - int(intact * size)] = bytes(size - int(intact * size))
    path.write_bytes(data)
    assert not probe(path).truncated  # the container is whole, so only decoding tells
    with VideoReader(path) as reader:
        fails(lambda: list(reader), "a.mp4", "is truncated after frame 15", "`allow_truncated`")
    with (
        VideoReader(path, allow_truncated=True) as reader,
        pytest.warns(UserWarning, match="1 damaged frame is left out, the first after frame 15"),
    ):
        assert len(list(reader)) == 29


def test_a_change_of_size_is_refused(tmp_path):
    parts = [
        make_clip(tmp_path / f"{n}.h264", size=(64, 48 + 16 * n), times=range(10 * n, 10 * n + 10))
        for n in (0, 1)
    ]
    (tmp_path / "both.h264").write_bytes(b"".join(part.read_bytes() for part in parts))
    with VideoReader(tmp_path / "both.h264", allow_truncated=True) as reader:
        fails(lambda: list(reader), "both.h264", "64x64", "64x48")


# Output


@pytest.fixture
def like(tmp_path) -> VideoInfo:
    return probe(make_clip(tmp_path / "source.mp4", times=range(3)))


def test_output_errors(tmp_path, like):
    def opening(name, **options):
        return lambda: VideoWriter(tmp_path / name, like=like, **options)

    fails(opening("a.xyz"), "a.xyz", *OUTPUT_SUFFIXES)
    fails(opening("source.mp4", overwrite=True), "source.mp4", "input itself")
    fails(opening("none/a.mp4"), "none", "does not exist")
    fails(opening("source.mp4/a.mp4"), "source.mp4", "not a folder")
    fails(opening("a.png"), "a.png", "one frame")
    (tmp_path / "old.mp4").write_bytes(b"old")
    fails(opening("old.mp4"), "old.mp4", "`overwrite`")
    (tmp_path / "folder.mp4").mkdir()
    fails(opening("folder.mp4", overwrite=True), "folder.mp4", "is a folder")
    if Path("/proc").is_dir():  # where not even root can write
        fails(lambda: VideoWriter("/proc/a.mp4", like=like), "/proc/a.mp4", "cannot write")
    assert (tmp_path / "old.mp4").read_bytes() == b"old"
    rewrite(like.path, tmp_path / "old.mp4", overwrite=True)
    assert probe(tmp_path / "old.mp4").num_frames == 3


@pytest.mark.parametrize("name", ["b.mp4", "b.webm", "b.gif"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("count", [0, 2])
def test_nothing_half_written_is_left(tmp_path, like, name, error, count):
    (tmp_path / name).write_bytes(b"old")
    before = sorted(tmp_path.iterdir())
    writing = VideoWriter(tmp_path / name, like=like, overwrite=True)
    with pytest.raises(error), writing as writer:  # noqa: PT012
        for index in range(count):
            writer.write(picture(index), index)
        assert any(path.name.startswith(".b.") for path in tmp_path.iterdir())
        raise error
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / name).read_bytes() == b"old"


def test_no_frames_is_an_error_and_leaves_nothing(tmp_path, like):
    def empty():
        with VideoWriter(tmp_path / "b.mp4", like=like):
            pass

    fails(empty, "b.mp4", "no frame")
    assert [path.name for path in tmp_path.iterdir()] == ["source.mp4"]


def test_what_the_encoder_refuses_is_explained(tmp_path, like):
    fails(VideoWriter(tmp_path / "b.mp4", like=like, width=100_000, height=2).__enter__, "b.mp4", "100000x2")
    assert [path.name for path in tmp_path.iterdir()] == ["source.mp4"]


def test_write_checks_its_frames(tmp_path, like):
    with VideoWriter(tmp_path / "b.mp4", like=like) as writer:
        writer.write(picture(), 5)
        for frame, pts in [(picture(0, 32, 48), 6), (picture().astype(np.float32), 6), (picture(), 5)]:
            with pytest.raises(ValueError, match="frame"):
                writer.write(frame, pts)
    with pytest.raises(ValueError, match="with block"):
        writer.write(picture(), 6)


def test_memory_is_bounded(tmp_path):
    """NumPy reports its arrays to tracemalloc: 120 frames of 230 kB must never be alive together."""
    path = make_clip(tmp_path / "a.mp4", size=(320, 240), times=range(120), options={"preset": "ultrafast"})
    tracemalloc.start()
    rewrite(path, tmp_path / "b.mp4", preset="ultrafast")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * 320 * 240 * 3


def test_side_by_side(tmp_path):
    a, b = picture(0), picture(3)
    both = side_by_side(a, b)
    assert both.shape == (48, 130, 3)
    assert (both[:, :64] == a).all()
    assert (both[:, 66:] == b).all()
    assert (both[:, 64:66] == 255).all()
    with pytest.raises(ValueError, match="lines high"):
        side_by_side(a, picture(0, 64, 40))


def test_a_clip_is_written_over_one_that_is_there(tmp_path):
    path = tmp_path / "a.mp4"
    for count in (3, 5):
        write_clip(path, np.stack([picture(index) for index in range(count)]), 12)
        assert probe(path).num_frames == count
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize("wanted", [{0}, {2, 5}, {9}, set(), {3, 40}])
def test_picked_frames_are_those_of_the_whole(tmp_path, wanted):
    frames = np.random.default_rng(0).integers(0, 256, (10, 6, 8, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    write_clip(tmp_path / "a.mp4", frames, 12)
    with VideoReader(tmp_path / "a.mp4") as reader:
        whole = list(reader)
    with VideoReader(tmp_path / "a.mp4") as reader:
        picked = list(reader.pick(wanted))
    expected = [whole[index] for index in sorted(wanted) if index < 10]
    assert [p.pts for p in picked] == [e.pts for e in expected]
    assert all((p.frame == e.frame).all() for p, e in zip(picked, expected, strict=True))
