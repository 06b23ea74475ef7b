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
import torch.nn.functional as F
from conftest import edit, make_pipeline, random_clip
from PIL import Image, ImageSequence
from processes import Command, rvedit
from safetensors.torch import save_file
from test_editors import SMALL, WORDS, save_pipeline

from rvedit.editing.preview import Preview, color_factors, latent_colors
from rvedit.editing.tiny_decoder import TinyDecoder
from rvedit.io.errors import UserError
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


def tiny_decoder_weights(channels: int, patch: int) -> dict[str, torch.Tensor]:
    """Random weights with the names and shapes of taew2_1.safetensors and taew2_2.safetensors, in small."""
    generator = torch.Generator().manual_seed(0)
    weights: dict[str, torch.Tensor] = {"encoder.0.weight": torch.zeros(1)}

    def add(name: str, rows: int, columns: int, side: int = 3, bias: bool = True) -> None:
        scale = (2 / (columns * side**2)) ** 0.5
        weights[f"decoder.{name}.weight"] = scale * torch.randn(
            rows, columns, side, side, generator=generator
        )
        if bias:
            weights[f"decoder.{name}.bias"] = 0.1 * torch.randn(rows, generator=generator)

    widths = (16, 12, 8, 8)
    add("1", widths[0], channels)
    for stage, first in enumerate((3, 9, 15)):
        width = widths[stage]
        for block in range(first, first + 3):
            add(f"{block}.conv.0", width, 2 * width)
            add(f"{block}.conv.2", width, width)
            add(f"{block}.conv.4", width, width)
        add(f"{first + 4}.conv", width * (1 if stage == 0 else 2), width, 1, bias=False)
        add(f"{first + 5}", widths[stage + 1], width, bias=False)
    add("22", 3 * patch**2, widths[3])
    return weights


def decode_frame_by_frame(
    weights: dict[str, torch.Tensor], latents: torch.Tensor, doublings: int, patch: int
) -> np.ndarray:
    """TAEHV's decoder as a sequence of layers, one latent frame after another; one frame of each growth."""
    get = {key.removeprefix("decoder."): x for key, x in weights.items()}
    memory: dict[int, torch.Tensor] = {}
    frames = []
    for latent in latents.unbind(1):
        x = F.conv2d(torch.tanh(latent[None] / 3) * 3, get["1.weight"], get["1.bias"], padding=1).relu()
        for stage, first in enumerate((3, 9, 15)):
            for block in range(first, first + 3):
                past = memory.get(block, torch.zeros_like(x))
                memory[block] = x
                y = torch.cat([x, past], 1)
                for layer in (f"{block}.conv.{number}" for number in (0, 2, 4)):
                    y = F.conv2d(y, get[f"{layer}.weight"], get[f"{layer}.bias"], padding=1)
                    y = y if layer.endswith("4") else y.relu()
                x = (y + x).relu()
            if stage < doublings:
                x = x.repeat_interleave(2, -1).repeat_interleave(2, -2)
            grown = F.conv2d(x, get[f"{first + 4}.conv.weight"])
            x = F.conv2d(grown[:, -x.shape[1] :], get[f"{first + 5}.weight"], padding=1)
        x = F.conv2d(x.relu(), get["22.weight"], get["22.bias"], padding=1)
        frames.append(F.pixel_shuffle(x, patch).clamp(0, 1)[0].permute(1, 2, 0))
    return (255 * torch.stack(frames).numpy()).round().astype(np.uint8)


@pytest.mark.parametrize(("patch", "max_side", "doublings"), [(2, 384, 3), (1, 39, 2), (2, 20, 1), (2, 5, 0)])
def test_a_tiny_decoder_draws_the_latents(tmp_path: Path, patch: int, max_side: int, doublings: int) -> None:
    weights = tiny_decoder_weights(4, patch)
    save_file(weights, tmp_path / "tiny.safetensors")
    latents = torch.randn(4, 3, 4, 5, generator=torch.Generator().manual_seed(1))
    drawn = TinyDecoder(tmp_path / "tiny.safetensors", 4)(latents, max_side)
    expected = decode_frame_by_frame(weights, latents, doublings, patch)
    assert drawn.shape == (3, 4 * patch * 2**doublings, 5 * patch * 2**doublings, 3)
    assert np.abs(drawn.astype(int) - expected).max() <= 1
    assert expected.std() > 20


def test_a_preview_by_a_tiny_decoder(tiny_pipeline: Any, tmp_path: Path) -> None:
    channels = tiny_pipeline.vae.config.z_dim
    save_file(tiny_decoder_weights(channels, 2), tmp_path / "tiny.safetensors")
    preview = Kept(tiny_pipeline, tmp_path / "seen.webp", decoder=tmp_path / "tiny.safetensors")
    edit(tiny_pipeline, random_clip(9), "remove it", num_inference_steps=2, callback_on_step_end=preview)
    assert read(tmp_path / "seen.webp").shape[0] == 3
    save_file(tiny_decoder_weights(channels + 1, 2), tmp_path / "other.safetensors")
    save_file({"decoder.0.weight": torch.ones(1)}, tmp_path / "super.safetensors")
    (tmp_path / "text.safetensors").write_text("no weights")
    part = {key: x for key, x in tiny_decoder_weights(channels, 2).items() if "13.conv" not in key}
    save_file(part, tmp_path / "part.safetensors")
    for name, reason in (
        ("other", f"latents of {channels + 1} channels, but the model's have {channels}"),
        ("super", "not a decoder of TAEHV's basic kind"),
        ("text", "not a complete safetensors file"),
        ("part", "not a complete decoder of TAEHV's basic kind"),
        ("nowhere", "no such file"),
    ):
        with pytest.raises(UserError, match=reason):
            Preview(tiny_pipeline, tmp_path / "seen.webp", decoder=tmp_path / f"{name}.safetensors")


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
    assert len(read(tmp_path / "seen.webp")) == 6
