"""`rvedit prepare probe`: what is read from a file, and no traceback for damaged ones."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import rvedit

from rvedit.io.video import write_clip

ROOT = Path(__file__).parents[1]
PARK = ROOT / "assets" / "park.mp4"


def probe(*words, **options):
    return rvedit("prepare", "probe", *words, **options)


def test_a_clip_is_described_for_people_and_programs(tmp_path):
    text = probe(PARK, cwd=tmp_path)
    assert text.returncode == 0, text.stderr
    assert text.stdout.splitlines()[1:4] == [
        "  video, 512x512, 33 frames in 2.750 s, 12 per second",
        "  video 0: h264 512x512, default, chosen",
        "  audio 1: aac 44100 Hz mono, default",
    ]
    as_json = probe(PARK, "--json", "--format", ".gif", cwd=tmp_path)
    assert as_json.returncode == 0, as_json.stderr
    (report,) = json.loads(as_json.stdout)["clips"]
    assert (report["num_frames"], report["frame_rate"], report["offsets"]) == (33, 12, [0])
    assert report["losses"] == ["its aac audio is left out of .gif; write .mkv to keep it"]
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_read_does_not_hide_the_others(tmp_path):
    Image.new("RGB", (32, 16)).save(tmp_path / "still.bmp")
    done = probe("no.mp4", "still.bmp", cwd=tmp_path)
    assert done.returncode == 1
    assert "image, 32x16, 1 frame" in done.stdout
    assert done.stderr.splitlines() == ["rvedit: no.mp4: no such file or folder; check the path"]
    done = probe("still.bmp", "--format", ".doc", cwd=tmp_path)
    assert done.returncode == 2
    assert "--format" in done.stderr


def test_transparency_of_a_picture_is_told(tmp_path):
    Image.new("RGBA", (8, 8), (9, 9, 9, 0)).save(tmp_path / "a.png")
    done = probe("a.png", cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "  an edit: its transparent parts are shown over black"


READ_ALL = """
import resource, sys, warnings
from rvedit.io.errors import UserError
from rvedit.io.video import VideoReader, clip_report, default_suffix, probe
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
warnings.simplefilter("ignore")
for name in sys.stdin.read().split():
    try:
        info = probe(name)
        clip_report(info, default_suffix(info))
        with VideoReader(name, allow_truncated=True) as reader:
            count = sum(1 for _ in reader)
        print("read", name, count)
    except UserError as error:
        print("refused", name, error)
    except Exception as error:
        print("traceback", name, repr(error))
"""


def mutations(files, folder, count):
    """Write copies with changed bytes, of which some end early; return their names."""
    rng = np.random.default_rng(0)
    names = []
    for number in range(count):
        file = files[number % len(files)]
        data = np.frombuffer(file.read_bytes(), np.uint8).copy()
        places = rng.integers(len(data), size=rng.choice([1, 3, 20, 200]))
        data[places] = rng.integers(256, size=len(places))
        length = rng.integers(len(data)) if rng.random() < 0.4 else len(data)
        names.append(folder / f"{number}{file.suffix}")
        names[-1].write_bytes(data[:length].tobytes())
    return names


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    """One small file of each kind."""
    folder = tmp_path_factory.mktemp("intact")
    frames = np.random.default_rng(1).integers(0, 256, (6, 32, 48, 3), np.uint8)
    for suffix in (".mp4", ".mov", ".mkv", ".webm", ".gif"):
        write_clip(folder / f"clip{suffix}", frames, 12)
    picture = Image.fromarray(frames[0]).convert("RGBA")
    for suffix in (".png", ".webp", ".tiff", ".avif"):
        picture.save(folder / f"still{suffix}")
    for suffix in (".jpg", ".bmp"):
        picture.convert("RGB").save(folder / f"still{suffix}")
    return sorted(folder.iterdir())


def test_damaged_files_are_read_or_refused_in_one_line(intact, tmp_path):
    names = mutations(intact, tmp_path, 500)
    done = subprocess.run(
        [sys.executable, "-c", READ_ALL],
        input="\n".join(map(str, names)),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]  # not killed, neither by a signal nor for its memory
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith("traceback")] == []
    assert len(lines) == len(names)
    assert 50 < sum(line.startswith("read") for line in lines) < 450
