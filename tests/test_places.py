"""Names and places of files: what cannot be read or written is one line, and a batch goes on."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import Command, rvedit

from rvedit.editing.batch import BatchConfig, edit_batch, plan_batch
from rvedit.editing.config import EditConfig
from rvedit.editing.edit_file import checked_instructions, default_output
from rvedit.io.errors import UserError
from rvedit.io.manifest import read_rows, write_json
from rvedit.io.signals import stop_as_by_ctrl_c
from rvedit.io.temporary import atomic_path, temporary_sibling
from rvedit.io.video import VideoWriter, probe, write_clip

LONG = "映" * 82  # 246 bytes: with .mp4 as long as a name may be
PARK = Path(__file__).parent.parent / "assets" / "park.mp4"


@contextmanager
def as_nobody():
    """Without a superuser's right to read and write everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def clip(path: Path, num_frames: int = 1) -> Path:
    write_clip(path, np.full((num_frames, 32, 32, 3), 90, np.uint8), 10)
    return path


def error_of(function, *arguments, **options) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Names


def test_temporary_sibling(tmp_path):
    first, second = temporary_sibling(tmp_path / "a.mp4"), temporary_sibling(str(tmp_path / "a.mp4"))
    assert first != second
    assert first.parent == tmp_path
    assert first.suffix == ".mp4"
    assert first.name.startswith(".a.")
    assert not first.exists()


def test_a_name_as_long_as_it_may_be(tmp_path):
    info = probe(clip(tmp_path / f"{LONG}.mp4"))
    assert info.num_frames == 1
    write_json(tmp_path / f"{LONG}.json", [1])
    output = default_output(info)
    assert output.name.startswith("映" * 60)
    assert output.name.endswith("_edited.mp4")
    clip(tmp_path / output.with_stem(f"{output.stem}_compare"))


def test_a_name_that_is_too_long_is_one_line(tmp_path):
    info = probe(clip(tmp_path / "a.mp4"))
    path = tmp_path / f"{LONG * 2}.mp4"
    assert "cannot be read (File name too long)" in error_of(probe, path)
    assert "cannot write in" in error_of(VideoWriter, path, like=info)
    assert checked_instructions(["把天空变成红色" * 20])  # a text, in characters shorter than a name may be


def test_a_line_break_in_a_name(tmp_path):
    assert error_of(probe, tmp_path / "a\nb.mp4").startswith(f"{tmp_path}/a\\nb.mp4: no such file")
    clip(tmp_path / "c\nd.mp4")
    assert probe(tmp_path / "c\nd.mp4").num_frames == 1


def test_a_name_that_is_no_text_is_printed(tmp_path):
    folder = tmp_path / os.fsdecode(b"\xff")
    folder.mkdir()
    clip(folder / "a_edited.mp4")
    (tmp_path / "list.csv").write_text("edited_type,prompt,original_video\nglobal_style,make it red,a.mp4\n")
    done = rvedit("edit", "--batch", "list.csv", "--out-dir", folder.name, cwd=tmp_path, check=0)
    assert done.stdout == "\\udcff: 0 edited, 1 skipped (already edited)\n"


# Places


def special(folder: Path, kind: str) -> Path:
    """A file that is none: it may never end."""
    if kind == "device":
        return Path("/dev/zero")
    path = folder / f"{kind}.mp4"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        socket.socket(socket.AF_UNIX).bind(os.path.relpath(path))
    return path


@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
def test_what_is_no_file_is_neither_read_nor_replaced(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    path = special(tmp_path, kind)
    assert "is a pipe, socket or device" in error_of(probe, path)
    link = tmp_path / "link.mp4"
    link.symlink_to(path)
    info = probe(clip(tmp_path / "a.mp4"))
    assert "is a pipe, socket or device" in error_of(VideoWriter, link, like=info, overwrite=True)


def test_a_closed_folder_is_one_line(tmp_path):
    info = probe(clip(tmp_path / "a.mp4"))
    tmp_path.chmod(0o600)
    with as_nobody():
        assert "cannot be read (Permission denied)" in error_of(probe, tmp_path / "a.mp4")
        assert "Permission denied" in error_of(VideoWriter, tmp_path / "b.mp4", like=info)
    tmp_path.chmod(0o700)


def test_a_folder_whose_files_cannot_be_listed_is_one_line():
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Image.new("RGB", (8, 8)).save(f"{folder}/0.png")
        os.chmod(folder, 0o311)
        with as_nobody():
            assert "cannot be read (Permission denied)" in error_of(probe, folder)
        os.chmod(folder, 0o700)


def test_a_list_that_cannot_be_read_is_one_line(tmp_path):
    done = rvedit("edit", "--batch", f"{LONG}{LONG}.csv", "--out-dir", "out", cwd=tmp_path, check=2)
    assert "File name too long" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_batch_goes_on(tmp_path, tiny_pipeline):
    """Past a pipe, names that are too long or have a line break, and an output that is a folder."""
    videos = tmp_path / "videos"
    videos.mkdir()
    os.mkfifo(videos / "pipe.mp4")
    for name in (f"{LONG}.mp4", "a.mp4", "c\nd.mp4", "folder.mp4"):
        clip(videos / name)
    for name in ("photo.webp", "photo.avif"):
        Image.new("RGB", (32, 32), (90, 90, 90)).save(videos / name)
    (tmp_path / "out" / "folder_edited.mp4").mkdir(parents=True)
    names = [*sorted(path.name for path in videos.iterdir()), f"{LONG * 2}.mp4", "none\nsuch.mp4"]
    rows = [f'global_style,make it red,"videos/{name}"' for name in names]
    (tmp_path / "list.csv").write_text("\n".join(["edited_type,prompt,original_video", *rows]))
    batch = BatchConfig(tmp_path / "list.csv", tmp_path / "out")
    config = EditConfig(num_inference_steps=1, detail=0)
    report = edit_batch(batch, plan_batch(batch), lambda: tiny_pipeline, config)
    assert report.edited == 5
    assert set(report.failures) == {"pipe", "folder", LONG * 2, "none\nsuch"}
    assert all("\n" not in reason for reason in report.failures.values())
    written = sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_file())
    edits = [name for name in written if "_edited" in name]
    assert edits[:3] == ["006_edited.mp4", "a_edited.mp4", "c_d_edited.mp4"]
    assert [name for name in edits if name.endswith(".png")] == ["photo_edited.png", "photo_row4_edited.png"]
    assert len(read_rows(tmp_path / "out" / "failures.jsonl")) == 4


# The end


def wait_for(condition, command):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and command.poll() is None and not condition():
        time.sleep(0.02)
    assert command.poll() is None, command.finish()
    assert condition()


def temporary_files(folder: Path) -> list[Path]:
    return [path for path in folder.glob(".*") if ".part" in path.name]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)]
)
def test_a_signal_leaves_nothing(tmp_path, number, code):
    command = Command("edit", PARK, "make it sepia", "--steps", 300, "--compare", cwd=tmp_path)
    wait_for(lambda: list(tmp_path.iterdir()), command)
    command.send_signal(number)
    done = command.finish()
    assert done.returncode == code
    assert "interrupted; no partial output was left" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_killed_processes_left_is_removed_when_something_is_written_there(tmp_path):
    command = Command("edit", PARK, "make it sepia", "--steps", 300, cwd=tmp_path)
    wait_for(lambda: temporary_files(tmp_path), command)
    command.send_signal(signal.SIGKILL)
    command.finish()
    left = temporary_files(tmp_path)
    assert len(left) == 1
    mine = temporary_sibling(tmp_path / "park_edited.mp4")  # of a process that runs
    others = [tmp_path / ".park_edited.ffffffff-1-0123abcd.part.mp4", tmp_path / ".park.part.mp4"]
    for path in (mine, *others):
        path.touch()
    clip(tmp_path / "park_edited.mp4")
    assert sorted(tmp_path.iterdir()) == sorted([mine, *others, tmp_path / "park_edited.mp4"])


def test_a_file_of_text_too_cleans_its_folder(tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    own = temporary_sibling(tmp_path / "a.json")
    stale = own.with_name(own.name.replace(f"-{os.getpid()}-", f"-{ended.pid}-"))
    stale.touch()
    with atomic_path(tmp_path / "b.json") as path:
        path.write_text("{}")
    assert [path.name for path in tmp_path.iterdir()] == ["b.json"]


def test_nohup_is_respected():
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN), signal.getsignal(signal.SIGTERM)
    try:
        stop_as_by_ctrl_c()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, previous[0])
        signal.signal(signal.SIGTERM, previous[1])


@pytest.mark.slow
def test_a_batch_that_was_stopped_goes_on(tmp_path):
    clip(tmp_path / "a.mp4")
    clip(tmp_path / "b.mp4", 24)
    rows = [f"global_style,make it sepia,{name}.mp4" for name in "ab"]
    (tmp_path / "list.csv").write_text("\n".join(["edited_type,prompt,original_video", *rows]))
    arguments = ("edit", "--batch", "list.csv", "--out-dir", "out", "--steps", 4)
    command = Command(*arguments, cwd=tmp_path)
    out = tmp_path / "out"
    wait_for(lambda: (out / "a_edited.mp4").is_file() and temporary_files(out), command)
    command.send_signal(signal.SIGTERM)
    assert command.finish().returncode == 143
    assert sorted(path.name for path in out.iterdir()) == ["a_edited.mp4", "edits.jsonl", "settings.json"]
    done = rvedit(*arguments, "--json", cwd=tmp_path, check=0)
    assert {**json.loads(done.stdout), "folder": ""} == {
        "folder": "",
        "edited": 1,
        "there": 1,
        "failures": {},
    }
