"""Pictures of an edit that is being sampled."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import edit, make_pipeline, random_clip
from PIL import Image, ImageSequence
from processes import Command, rvedit
from test_editors import SMALL, WORDS, save_pipeline

from rvedit.editing.preview import Preview, color_factors, latent_colors
from rvedit.io.frames import resize_frames
from rvedit.io.video import VideoReader, write_clip
from rvedit.pipelines.baselines import BASELINES
from rvedit.pipelines.loading import load_pipeline

PARK = Path(__file__).parent.parent / "assets" / "park.mp4"


def read(path: Path) -> np.ndarray:
    """All frames (t, h, w, 3) of an animated picture."""
    with Image.open(path) as picture:
        return np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(picture)])


class Kept(Preview):
    """A preview that also keeps what it writes."""

    def write(self, frames: np.ndarray) -> None:
        self.__dict__.setdefault("written", []).append(frames)
        super().write(frames)


def test_the_colors_are_those_of_the_frames() -> None:
    pipe = load_pipeline("nano", "cpu")
    with VideoReader(PARK) as reader:
        clip = np.stack([timed.frame for timed in reader])[:9]
    clip = resize_frames(clip, *pipe.model_size(*clip.shape[1:3]))
    drawn = latent_colors(pipe.encode_video(clip)[0], color_factors(pipe))
    small = resize_frames(clip[[0, 2, 6]], *drawn.shape[1:3])
    assert np.corrcoef(drawn.ravel(), small.ravel())[0, 1] > 0.9


@pytest.mark.parametrize("steps", [1, 2, 5, 40])
def test_it_shows_what_the_model_predicts(tiny_pipeline: Any, tmp_path: Path, steps: int) -> None:
    """On a straight path, that is its end at every step."""
    preview = Kept(tiny_pipeline, tmp_path / "preview.webp")
    end, noise = torch.randn(2, 1, tiny_pipeline.vae.config.z_dim, 3, 2, 2).unbind(0)
    sigmas = torch.linspace(1, 0, steps + 1) ** 0.7
    pipe = SimpleNamespace(scheduler=SimpleNamespace(sigmas=sigmas), num_timesteps=steps)
    for step in range(steps):
        latents = (1 - sigmas[step + 1]) * end + sigmas[step + 1] * noise
        preview(pipe, step, None, {"latents": latents})
    expected = latent_colors(end[0], preview.factors)
    assert len(preview.written) == {1: 1, 2: 1, 5: 3, 40: 4}[steps]
    for written in preview.written:
        assert np.abs(written.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
@pytest.mark.parametrize("kind", ["rvedit", "lucy", "vace"])
def test_every_model_has_one(
    tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, suffix: str
) -> None:
    if kind == "rvedit":
        pipe = make_pipeline(tiny_tokenizer)
    else:
        monkeypatch.setitem(
            BASELINES, kind, BASELINES[kind].__class__(**{**vars(BASELINES[kind]), "native": SMALL})
        )
        pipe = load_pipeline(str(save_pipeline(tmp_path / kind, kind, tiny_tokenizer)))
    settings = {"num_inference_steps": 3, "guidance_scale": 1.0, "detail": 0, **WORDS.get(kind, {})}
    clip = random_clip(12, 32, 48)
    preview = Kept(pipe, tmp_path / f"preview{suffix}", frame_rate=8.0)
    edited = edit(pipe, clip, "make it red", callback_on_step_end=preview, **settings)
    assert np.array_equal(edited, edit(pipe, clip, "make it red", **settings)), "it changes nothing"
    assert len(preview.written) % 2 == 0, "the second and the third step of each window"
    shown = read(tmp_path / f"preview{suffix}")
    assert len(shown) == len(preview.written[-1])
    assert max(shown.shape[1:3]) <= 192
    with Image.open(preview.path) as picture:
        picture.load()
        assert picture.info["duration"] == 500
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [preview.path.name]


def test_the_command_writes_it(tmp_path: Path) -> None:
    write_clip(tmp_path / "in.mkv", random_clip(2, 32, 48), 12)
    words = ["edit", "in.mkv", "make it red", "--steps", "2", "--preview", "seen.gif"]
    done = rvedit(*words, "--json", cwd=tmp_path, check=0)
    assert json.loads(done.stdout)["preview"] == "seen.gif"
    assert read(tmp_path / "seen.gif").shape[-1] == 3
    for wrong, said in {
        "seen.gif": "seen.gif: exists; set --overwrite",
        "seen.mp4": "--preview seen.mp4: give an animated picture's name, ending in .gif or .webp",
        "no/seen.gif": "the folder no does not exist",
    }.items():
        assert said in rvedit(*words[:-1], wrong, "-o", "out.mkv", cwd=tmp_path, check=2).stderr
    batch = rvedit("edit", "--batch", "x.csv", "--out-dir", "o", "--preview", "a.gif", cwd=tmp_path, check=2)
    assert "--save-mask and --preview" in batch.stderr


def test_it_is_whole_at_any_moment(tmp_path: Path) -> None:
    write_clip(tmp_path / "in.mkv", random_clip(60, 96, 96), 12)
    words = ("edit", "in.mkv", "make it red", "--steps", "8", "--preview", "seen.webp", "--detail", "off")
    command = Command(*words, cwd=tmp_path)
    pictures = set()
    while len(pictures) < 8 and command.poll() is None:
        if (tmp_path / "seen.webp").exists():
            pictures.add(read(tmp_path / "seen.webp").tobytes())
        time.sleep(0.01)
    command.send_signal(signal.SIGKILL)
    assert command.finish().returncode == -signal.SIGKILL, "it was killed in the middle"
    assert len(pictures) == 8
    assert len(read(tmp_path / "seen.webp")) == 3
