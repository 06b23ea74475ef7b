"""What real video files do: damage, clocks that jump, several streams, transparency, fields, tags."""

from __future__ import annotations

import shutil
import subprocess
import warnings
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from field_coded import coded_frames
from PIL import Image, features
from processes import rvedit
from test_video import fails, first_frame, make_clip, noise, picture, rewrite, seconds, sound_packets

from rvedit.datasets.probe import probe_clip
from rvedit.editing.edit_file import default_output
from rvedit.io.video import VideoReader, VideoWriter, frame_times, losses, probe, write_clip
from rvedit.io.video.streams import choose_video, open_container
from rvedit_cli.console import show_warning

TS = 188  # bytes in a transport packet


def broadcast(path: Path, count=10, first=0.0, audio=("aac",), **options) -> Path:
    """A recording of 25 frames per second whose clock starts at `first` seconds."""
    start = round(25 * first)
    options = {"codec": "mpeg2video", "options": {"g": "5"}, **options}
    make_clip(path, times=range(count), time_base=Fraction(1, 25), audio=audio, **options)
    if not start:
        return path
    copy = path.with_name(f"late-{path.name}")
    with av.open(str(path)) as source, av.open(str(copy), "w") as output:
        streams = {stream.index: output.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.dts is not None:
                packet.pts += round(first / packet.time_base)
                packet.dts += round(first / packet.time_base)
                packet.stream = streams[packet.stream.index]
                output.mux(packet)
    return copy


def joined(path: Path, *parts: Path) -> Path:
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def read(path: Path, **options):
    """The frames, their times in seconds, and the warnings."""
    with warnings.catch_warnings(record=True) as caught, VideoReader(path, **options) as reader:
        warnings.simplefilter("always")
        frames = list(reader)
        times = [float(timed.pts * reader.info.time_base) for timed in frames]
    return frames, times, [str(warning.message) for warning in caught]


def steps(times) -> list[float]:
    return [round(b - a, 4) for a, b in pairwise(times)]


# Damage


def test_frames_after_damage_are_read(tmp_path):
    path = broadcast(tmp_path / "a.ts", 40, audio=(), frames=noise, options={"g": "10", "b": "400000"})
    data = path.read_bytes()
    packets = [data[start : start + TS] for start in range(0, len(data), TS)]
    inner = [n for n, p in enumerate(packets) if p[1] & 0x5F == 1 and p[2] == 0]  # of video, amid a frame
    del packets[inner[len(inner) // 2]]
    lossy = tmp_path / "lossy.ts"
    lossy.write_bytes(b"".join(packets))
    fails(lambda: VideoReader(lossy), "lossy.ts", "is damaged", "`allow_truncated`")
    frames, times, (warning,) = read(lossy, allow_truncated=True)
    lost = 40 - len(frames)
    assert 1 <= lost <= 3
    assert f"{lost} damaged frame" in warning
    assert "the first after frame " in warning
    assert times[-1] == pytest.approx(39 / 25)
    assert [float(time) for time in frame_times(probe(lossy))[0]] == pytest.approx(times)


def test_damage_at_a_seam_that_loses_nothing(tmp_path):
    part = broadcast(tmp_path / "a.ts")
    path = joined(tmp_path / "twice.ts", part, part)
    frames, _, messages = read(path, allow_truncated=True)
    assert (len(frames), messages) == (20, [])


def test_damaged_sound_is_left_out(tmp_path):
    path = broadcast(tmp_path / "a.ts", 50)
    data = bytearray(path.read_bytes())
    sound = [
        n for n in range(0, len(data), TS) if data[n + 1] & 0x5F == 1 and data[n + 2] == 1
    ]  # amid a frame
    start = sound[len(sound) // 2]
    data[start : start + TS] = b""
    path.write_bytes(data)
    with pytest.warns(UserWarning, match=r"its audio has gaps \(damaged packets: \d+\)"):
        assert rewrite(path, tmp_path / "b.mp4").has_audio
    (copied,) = sound_packets(tmp_path / "b.mp4")
    assert copied[-1][0] > 1.9


# Clocks


@pytest.mark.parametrize("suffix", [".ts", ".mpg"])
@pytest.mark.parametrize("starts", [(0, 0), (0, 100), (100, 0), (0, 50, 0)])
@pytest.mark.parametrize("audio", [("mp2",), ()], ids=["sound", "silent"])
def test_recordings_that_were_joined(tmp_path, suffix, starts, audio):
    parts = [broadcast(tmp_path / f"{n}{suffix}", 10, start, audio) for n, start in enumerate(starts)]
    path = joined(tmp_path / f"joined{suffix}", *parts)
    frames, times, _ = read(path, allow_truncated=True)
    info = probe(path)
    assert len(frames) == info.num_frames == 10 * len(starts)
    assert len(info.clock.offsets) == len(starts)
    assert times[0] < 0.1
    assert all(0.039 < step < 0.1 for step in steps(times))
    assert [float(time) for time in frame_times(info)[0]] == pytest.approx([t - times[0] for t in times])
    with warnings.catch_warnings(), VideoReader(path, allow_truncated=True) as reader:
        warnings.simplefilter("error")
        with VideoWriter(tmp_path / "b.mp4", like=reader.info) as writer:
            for timed in reader:
                writer.write(*timed)
    assert seconds(tmp_path / "b.mp4") == pytest.approx(times, abs=1e-4)
    for single, both in zip(sound_packets(parts[0]), sound_packets(tmp_path / "b.mp4"), strict=True):
        assert [data for _, data in both] == [data for _, data in single] * len(starts)
        between = start_of_video(parts[0]) - single[0][0]
        for n in range(len(starts)):  # sound and pictures are as far apart as in each recording
            assert times[10 * n] - both[n * len(single)][0] == pytest.approx(between, abs=2e-3)
    assert info.truncated or not probe_clip(str(path), "decode").error


def start_of_video(path: Path) -> float:
    """The time of the first frame, uncorrected."""
    with av.open(str(path)) as container:
        return float(next(container.decode(video=0)).time)


@pytest.mark.parametrize("suffix", [".ts", ".mpg"])
@pytest.mark.parametrize("first", [4000, 2**33 / 90000 - 0.2], ids=["late", "wrapping"])
def test_a_clock_that_starts_late(tmp_path, suffix, first):
    path = broadcast(tmp_path / f"a{suffix}", 10, first, ("mp2",))
    info = rewrite(path, tmp_path / "b.mp4")
    times, sound = seconds(tmp_path / "b.mp4"), sound_packets(tmp_path / "b.mp4")[0]
    assert min(times[0], sound[0][0]) == pytest.approx(0, abs=1e-3)
    before = sound_packets(path)[0]
    assert times[0] - sound[0][0] == pytest.approx(start_of_video(path) - before[0][0], abs=1e-3)
    assert info.duration == pytest.approx(0.4)


def test_a_live_stream_in_mkv_starts_late(tmp_path):
    make_clip(tmp_path / "a.mkv", times=range(4000, 4010))
    assert seconds(tmp_path / "a.mkv") == pytest.approx([n / 10 for n in range(10)], abs=2e-3)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_long_frame_stays(tmp_path, suffix):
    path = make_clip(tmp_path / f"a{suffix}", times=[0, 1, 2, 300, 301])
    assert steps(seconds(path)) == pytest.approx([0.1, 0.1, 29.8, 0.1], abs=2e-3)


def test_a_pause_of_pictures_alone_stays(tmp_path):
    times = [*range(10), *range(60, 70)]
    path = make_clip(
        tmp_path / "a.ts", times=times, time_base=Fraction(1, 25), audio=["mp2"], codec="mpeg2video"
    )
    assert max(steps(seconds(path))) == pytest.approx(51 / 25, abs=0.05)


# Rates


def test_avi_with_reordered_frames(tmp_path):
    frames = {"frames": picture, "times": range(20), "time_base": Fraction(1, 25)}
    path = make_clip(
        tmp_path / "a.avi", codec="libx264", options={"bf": "3", "x264-params": "b-adapt=0"}, **frames
    )
    read_frames, times, _ = read(path)
    assert times == pytest.approx([n / 25 for n in range(20)])
    assert [round((int(f.frame[40, 40, 0]) - 40) / 10) for f in read_frames[:10]] == list(range(10))
    assert [float(time) for time in frame_times(probe(path))[0]] == pytest.approx(times)
    assert probe(path).duration == pytest.approx(0.8)


def test_a_rate_that_is_a_time_base(tmp_path):
    """As FFmpeg 8 reads it from DV tapes."""
    path = make_clip(
        tmp_path / "a.dv",
        size=(720, 576),
        times=range(3),
        time_base=Fraction(1, 25),
        codec="dvvideo",
        options={"threads": "1"},
        audio=["pcm_s16le"],
        layout="stereo",
    )
    info = probe(path)
    assert (info.frame_rate, info.num_frames) == (25, 3)
    assert info.duration == pytest.approx(0.12)
    assert seconds(path) == pytest.approx([0, 0.04, 0.08])


# Streams


def with_two_videos(path: Path, *, sizes, flags, codecs=("libx264", "libx264")) -> Path:
    with av.open(str(path), "w") as container:
        streams = []
        for size, flag, codec in zip(sizes, flags, codecs, strict=True):
            stream = container.add_stream(codec, rate=25)
            stream.width, stream.height = size
            stream.pix_fmt = "rgb24" if codec == "png" else "yuv420p"
            stream.disposition = flag
            streams.append(stream)
        for index in range(3):
            for stream in streams:
                if stream.disposition & Disposition.attached_pic and index:
                    continue
                frame = av.VideoFrame.from_ndarray(
                    picture(index, stream.width, stream.height), format="rgb24"
                )
                frame.pts = index
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("suffix", "flags", "chosen"),
    [
        (".mkv", (Disposition.default, Disposition(0)), (32, 16)),
        (".mkv", (Disposition(0), Disposition.default), (64, 48)),
        (".ts", (Disposition(0), Disposition(0)), (64, 48)),
    ],
)
def test_the_video_that_players_show(tmp_path, suffix, flags, chosen):
    path = with_two_videos(tmp_path / f"a{suffix}", sizes=[(32, 16), (64, 48)], flags=flags)
    info = probe(path)
    assert (info.width, info.height) == chosen
    assert sum("chosen" in stream for stream in info.streams) == 1
    assert first_frame(path).shape[:2] == chosen[::-1]
    assert losses(info, ".mp4") == ["left out of .mp4: another video (h264)"]


def test_a_cover_image_is_not_the_video(tmp_path):
    flags = (Disposition.attached_pic, Disposition.default)
    path = with_two_videos(
        tmp_path / "a.mp4", sizes=[(128, 128), (64, 48)], flags=flags, codecs=("png", "libx264")
    )
    assert (probe(path).width, probe(path).height) == (64, 48)
    with pytest.warns(UserWarning, match=r"a\.mp4: left out of \.mp4: cover image"):
        rewrite(path, tmp_path / "b.mp4")


@pytest.mark.skipif(not features.check("avif"), reason="Pillow without AVIF")
def test_a_still_stays_a_still(tmp_path):
    Image.fromarray(picture()).save(tmp_path / "a.avif", quality=90)
    info = probe(tmp_path / "a.avif")
    assert (info.kind, info.num_frames) == ("image", 1)
    assert default_output(info) == Path("a_edited.png")
    assert np.abs(first_frame(tmp_path / "a.avif").astype(int) - picture()).mean() < 4
    Image.fromarray(picture()).save(tmp_path / "a.tga")
    info = probe(tmp_path / "a.tga")
    assert (info.kind, default_output(info)) == ("image", Path("a_edited.png"))
    assert (first_frame(tmp_path / "a.tga") == picture()).all()


@pytest.mark.skipif(shutil.which("avifenc") is None, reason="no avifenc")
def test_a_picture_in_tiles_is_read_whole(tmp_path):
    whole = noise(0, 16, 16).repeat(8, 0).repeat(8, 1)
    for n in range(4):
        left, top = n % 2 * 64, n // 2 * 64
        Image.fromarray(whole[top : top + 64, left : left + 64]).save(tmp_path / f"{n}.png")
    tiles = [tmp_path / f"{n}.png" for n in range(4)]
    command = [
        "avifenc",
        "--grid",
        "2x2",
        "-s",
        "10",
        "--min",
        "0",
        "--max",
        "8",
        *tiles,
        tmp_path / "a.avif",
    ]
    subprocess.run(command, check=True, capture_output=True)
    with open_container(tmp_path / "a.avif") as container:  # as of a HEIC picture, which Pillow cannot open
        fails(lambda: choose_video(container, tmp_path / "a.avif"), "a.avif", "4 tiles", "convert it to .png")
    assert first_frame(tmp_path / "a.avif").shape == (128, 128, 3)
    assert np.abs(first_frame(tmp_path / "a.avif").astype(int) - whole).mean() < 12


# Transparency


def half_transparent(path: Path, codec: str, pix_fmt: str) -> Path:
    """Red, whose right half is transparent."""
    rgba = np.zeros((48, 64, 4), np.uint8)
    rgba[..., 0], rgba[:, :32, 3] = 255, 255
    if path.suffix == ".gif":
        frames = [Image.fromarray(rgba), Image.fromarray(np.roll(rgba, 4, 0))]
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=100, disposal=2)
        return path
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pix_fmt
        for index in range(2):
            frame = av.VideoFrame.from_ndarray(rgba, format="rgba").reformat(format=pix_fmt)
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("a.mov", "qtrle", "argb"),
        ("b.mov", "prores_ks", "yuva444p10le"),
        ("a.mkv", "ffv1", "yuva420p"),
        ("a.webm", "libvpx-vp9", "yuva420p"),
        ("a.gif", "", ""),
    ],
)
def test_transparent_parts_are_black(tmp_path, name, codec, pix_fmt):
    path = half_transparent(tmp_path / name, codec, pix_fmt)
    info = probe(path)
    assert info.has_alpha
    for timed in read(path)[0]:
        assert np.abs(timed.frame[24, 10].astype(int) - (255, 0, 0)).max() < 12
        assert (timed.frame[:, 40:] == 0).all()
    with pytest.warns(UserWarning, match="its transparent parts are shown over black") as caught:
        VideoWriter(tmp_path / "out.mp4", like=info)
    assert len(caught) == 1


def test_opaque_frames_in_a_format_with_alpha(tmp_path):
    write_clip(tmp_path / "a.gif", np.stack([picture(n) for n in range(3)]), 10)
    info = probe(tmp_path / "a.gif")
    assert not info.has_alpha
    assert losses(info, ".mp4") == []


# Sound


@pytest.mark.parametrize(("codec", "name"), [("flac", "flac"), ("libopus", "opus")])
def test_sound_whose_header_fails(tmp_path, codec, name):
    """As QuickTime's of FLAC: FFmpeg knows the codec's tag, and refuses to write it."""
    path = make_clip(tmp_path / "a.mkv", audio=[codec])
    with pytest.warns(UserWarning, match=f"its {name} audio is left out of .mov; write .mkv to keep it"):
        writer = VideoWriter(tmp_path / "b.mov", like=probe(path))  # before a model is loaded
    with VideoReader(path) as reader, writer:
        for timed in reader:
            writer.write(*timed)
    assert probe(tmp_path / "b.mov").num_frames == 10
    assert rewrite(path, tmp_path / "b.mkv").has_audio


def test_pcm_goes_where_players_play_it(tmp_path):
    path = make_clip(tmp_path / "a.avi", audio=["pcm_s16le"])
    info = probe(path)
    assert default_output(info) == Path("a_edited.mkv")
    assert losses(info, ".mkv") == losses(info, ".mov") == []
    (line,) = losses(info, ".mp4")
    assert line == "its pcm_s16le audio is left out of .mp4; write .mkv to keep it"
    assert default_output(probe(make_clip(tmp_path / "b.avi", audio=["libmp3lame"]))) == Path("b_edited.mp4")


def test_a_loss_is_told_once_and_before_the_model_is_loaded(tmp_path):
    make_clip(tmp_path / "a.avi", audio=["pcm_s16le"], times=range(3))
    arguments = ["edit", "a.avi", "make it sepia", "--compare", "-o", "b.mp4", "--model", "none"]
    done = rvedit(*arguments, cwd=tmp_path, check=2)
    assert done.stderr.count("its pcm_s16le audio is left out of .mp4") == 1


def test_the_command_shows_each_warning_once(capsys):
    for _ in range(2):
        show_warning("a.avi: its sound is lost", UserWarning, "/x/rvedit/io/video/writer.py")
    assert capsys.readouterr().err == "rvedit: a.avi: its sound is lost\n"


# Tags, chapters, subtitles


@pytest.fixture
def rich(tmp_path) -> Path:
    """A clip with all that is not pictures."""
    path = tmp_path / "rich.mov"
    with av.open(str(path), "w") as container:
        container.metadata.update(
            title="My clip", creation_time="2024-05-06T07:08:09.000000Z", location="+48.8500+002.3500/"
        )
        video = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.metadata["timecode"] = "01:02:03:04"
        sounds = [container.add_stream("aac", rate=48000) for _ in range(2)]
        for sound, language in zip(sounds, ("eng", "fra"), strict=True):
            sound.layout = "mono"
            sound.metadata.update(language=language, title=f"Sound in {language}")
        sounds[1].disposition = Disposition(0)
        container.set_chapters(
            [{"id": 0, "start": 0, "end": 200, "time_base": Fraction(1, 1000), "metadata": {"title": "One"}}]
        )
        for index in range(10):
            frame = av.VideoFrame.from_ndarray(picture(index), format="rgb24")
            frame.pts = index
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        for sound in sounds:
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 19200), np.float32), "fltp", "mono")
            frame.sample_rate, frame.pts = 48000, 0
            container.mux(sound.encode(frame))
            container.mux(sound.encode(None))
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_tags_chapters_titles_and_time_code_are_kept(tmp_path, rich, suffix):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rewrite(rich, tmp_path / f"b{suffix}")
    with av.open(str(tmp_path / f"b{suffix}")) as container:
        tags = {key.lower(): value for key, value in container.metadata.items()}
        assert tags["title"] == "My clip"
        assert tags["creation_time"].startswith("2024-05-06T07:08:09")
        assert tags["location"].startswith("+48.85")
        (chapter,) = container.chapters()
        assert chapter["metadata"]["title"] == "One"
        assert (chapter["end"] - chapter["start"]) * chapter["time_base"] == Fraction(1, 5)
        video = {key.lower(): value for key, value in container.streams.video[0].metadata.items()}
        assert video["timecode"] == "01:02:03:04"
        sounds = container.streams.audio
        assert [sound.language for sound in sounds] == ["eng", "fra"]
        names = [sound.metadata.get("title") or sound.metadata.get("name") for sound in sounds]
        assert names == ["Sound in eng", "Sound in fra"]
        assert [bool(sound.disposition & Disposition.default) for sound in sounds] == [True, False]


def test_what_is_lost_is_named_once(tmp_path, rich):
    info = probe(rich)
    assert losses(info, ".gif")[-1] == (
        "left out of .gif: chapters, time code, tags (creation_time, title, location)"
    )
    with pytest.warns(UserWarning, match=r"rich\.mov: ") as caught:
        rewrite(rich, tmp_path / "b.gif")
    assert [str(warning.message) for warning in caught] == [
        f"{rich}: {line}" for line in losses(info, ".gif")
    ]
    assert len(caught) == 3  # two tracks of sound, and the rest


def test_subtitles_are_copied(tmp_path):
    (tmp_path / "a.srt").write_text("1\n00:00:00,100 --> 00:00:00,500\nhello\n")
    make_clip(tmp_path / "a.mp4")
    path = tmp_path / "a.mkv"
    with (
        av.open(str(tmp_path / "a.mp4")) as pictures,
        av.open(str(tmp_path / "a.srt")) as texts,
        av.open(str(path), "w") as container,
    ):
        sources = [pictures.streams.video[0], texts.streams.subtitles[0]]
        copies = [container.add_stream_from_template(stream) for stream in sources]
        copies[1].metadata["language"] = "eng"
        for source, copy in zip((pictures, texts), copies, strict=True):
            for packet in source.demux():
                if packet.dts is not None:
                    packet.stream = copy
                    container.mux(packet)
    assert losses(probe(path), ".mp4") == ["left out of .mp4: subtitles (subrip)"]
    rewrite(path, tmp_path / "b.mkv")
    with av.open(str(tmp_path / "b.mkv")) as container:
        (stream,) = container.streams.subtitles
        assert stream.language == "eng"
        packet = next(packet for packet in container.demux(stream) if packet.size)
        assert (bytes(packet), packet.pts * packet.time_base) == (b"hello", Fraction(1, 10))


# Fields


def test_fields_are_deinterlaced(tmp_path):
    def field(number: int, width: int, height: int) -> np.ndarray:
        frame = np.full((height, width, 3), 60, np.uint8)
        frame[:, 6 * number : 6 * number + 12] = 220
        return frame

    def woven(index: int, width: int, height: int) -> np.ndarray:
        frame = field(2 * index, width, height)
        frame[1::2] = field(2 * index + 1, width, height)[1::2]
        return frame

    def combing(frame: np.ndarray) -> float:
        lines = frame[..., 1].astype(int)
        return np.maximum(0, (lines[1:-1] - lines[:-2]) * (lines[1:-1] - lines[2:])).mean()

    path = make_clip(
        tmp_path / "a.mkv",
        frames=woven,
        times=range(6),
        time_base=Fraction(1, 25),
        size=(96, 64),
        codec="mpeg2video",
        options={"flags": "+ildct+ilme", "qscale": "2", "b": "4000000"},
    )
    info = probe(path)
    assert info.is_interlaced
    frames, times, _ = read(path)
    assert times == pytest.approx([n / 25 for n in range(6)])
    for index, timed in enumerate(frames):
        assert combing(timed.frame) < combing(woven(index, 96, 64)) / 10
    assert not probe(make_clip(tmp_path / "b.mkv", codec="mpeg2video")).is_interlaced


def test_frames_whose_fields_are_packets(tmp_path):
    path = tmp_path / "a.ts"
    (tmp_path / "a.h264").write_bytes(b"".join(coded_frames(8)))
    with av.open(str(tmp_path / "a.h264")) as raw, av.open(str(path), "w") as container:
        stream = container.add_stream_from_template(raw.streams.video[0])
        for number, data in enumerate(coded_frames(8)):
            packet = av.Packet(data)
            packet.stream, packet.time_base = stream, Fraction(1, 25)
            packet.pts = packet.dts = number
            packet.is_keyframe = True
            container.mux(packet)
    info = probe(path)
    assert (info.num_frames, info.frame_rate, info.is_interlaced) == (8, 25, True)
    assert read(path)[1] == pytest.approx([n / 25 for n in range(8)])
