"""Shift and sigmas that a user chooses, for every model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import edit, edit_latents, make_pipeline, random_clip
from diffusers import UniPCMultistepScheduler
from processes import rvedit
from test_editors import SMALL, WORDS, save_pipeline
from torch.testing import assert_close

from rvedit.editing.config import EditConfig
from rvedit.io.errors import UserError
from rvedit.io.video import write_clip
from rvedit.pipelines.baselines import BASELINES
from rvedit.pipelines.loading import load_pipeline
from rvedit.pipelines.sigmas import check_sigmas, read_sigmas

PROMPT = "make the fish orange"


def shifted(sigmas: list[float], shift: float) -> list[float]:
    return [shift * s / (1 + (shift - 1) * s) for s in sigmas]


def watch(seen: list[list[float]]) -> Any:
    """A callback that keeps the sigmas that a pipeline uses."""

    def on_step_end(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        assert float(timestep) == pytest.approx(1000 * float(pipe.scheduler.sigmas[step]), abs=1)
        seen.append(pipe.scheduler.sigmas.tolist())
        return tensors

    return on_step_end


def test_the_pipelines_schedule_is_the_one_that_was_given(tiny_tokenizer: Any) -> None:
    pipe, clip = make_pipeline(tiny_tokenizer), random_clip(5)
    seen: list[list[float]] = []
    own = edit_latents(pipe, clip, PROMPT, num_inference_steps=4, callback_on_step_end=watch(seen))
    even = [1, 0.75, 0.5, 0.25]
    assert seen[-1] == pytest.approx([*shifted(even, 3.0), 0])
    by_shift = edit_latents(pipe, clip, PROMPT, num_inference_steps=4, shift=3.0)
    assert torch.equal(by_shift, own)
    by_sigmas = edit_latents(
        pipe, clip, PROMPT, sigmas=[*shifted(even, 3.0), 0], num_inference_steps=9, shift=7
    )
    assert_close(by_sigmas, own, rtol=0, atol=1e-4)
    other = edit_latents(pipe, clip, PROMPT, sigmas=[1, 0.4], callback_on_step_end=watch(seen))
    assert seen[-1] == pytest.approx([1, 0.4, 0])
    assert not torch.allclose(other, own, atol=1e-2)
    edit_latents(pipe, clip, PROMPT, num_inference_steps=2, shift=8.0, callback_on_step_end=watch(seen))
    assert seen[-1] == pytest.approx([*shifted([1, 0.5], 8.0), 0])
    again = edit_latents(pipe, clip, PROMPT, num_inference_steps=4)
    assert torch.equal(again, own), "the choice is of one call"


@pytest.mark.parametrize("solver", ["Euler", "UniPC"])
@pytest.mark.parametrize("kind", ["lucy", "vace"])
def test_so_is_a_baselines(
    tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, solver: str
) -> None:
    monkeypatch.setitem(BASELINES, kind, replace(BASELINES[kind], native=SMALL))
    pipe = load_pipeline(str(save_pipeline(tmp_path / kind, kind, tiny_tokenizer)))
    if solver == "UniPC":
        pipe.scheduler = UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0
        )
    own = pipe.scheduler
    seen: list[list[float]] = []
    call = type(pipe).__call__

    def watched(self: Any, **arguments: Any) -> Any:
        report = arguments.pop("callback_on_step_end")

        def on_step_end(*given: Any) -> Any:
            return watch(seen)(*given[:3], report(*given))

        return call(self, **arguments, callback_on_step_end=on_step_end)

    monkeypatch.setattr(type(pipe), "__call__", watched)
    steps: list[tuple[int, int]] = []
    settings = {
        "guidance_scale": 1.0,
        "detail": 0,
        "on_progress": lambda progress: steps.append((progress.step, progress.num_steps)),
        **WORDS[kind],
    }
    clip = random_clip(5, 32, 48)
    edit(pipe, clip, PROMPT, sigmas=[1, 0.9, 0.6], num_inference_steps=7, **settings)
    assert seen[-1] == pytest.approx([1, 0.9, 0.6, 0])
    assert steps == [(1, 3), (2, 3), (3, 3)]
    results = {}
    for shift in (None, 5.0, 2.0):
        results[shift] = edit(pipe, clip, PROMPT, shift=shift, num_inference_steps=2, **settings)
        if solver == "UniPC":
            assert seen[-1] == pytest.approx([*shifted([1, 0.5], shift or 5.0), 0], abs=2e-3)
    assert np.array_equal(results[None], results[5.0])
    assert not np.array_equal(results[None], results[2.0])
    assert pipe.scheduler is own


def test_sigmas_are_read() -> None:
    assert read_sigmas("1, 0.75,0.5") == [1, 0.75, 0.5]
    assert read_sigmas("1,0.5,0") == check_sigmas((1, 0.5)) == [1, 0.5]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"sigmas": []}, "`sigmas` : give falling numbers"),
        ({"sigmas": [0.0]}, "`sigmas` 0: give falling numbers"),
        ({"sigmas": [1.2, 0.5]}, "`sigmas` 1.2,0.5: give falling"),
        ({"sigmas": [1.0, 0.5, 0.5]}, "`sigmas` 1,0.5,0.5: give falling"),
        ({"sigmas": [1.0, float("nan")]}, "`sigmas` 1,nan: give falling"),
        ({"sigmas": [0.5, -0.5]}, "`sigmas` 0.5,-0.5: give falling"),
        ({"shift": 0.0}, "`shift` 0: give a number above 0"),
        ({"shift": float("nan")}, "`shift` nan: give a number above 0"),
        ({"shift": float("inf")}, "`shift` inf: give a number above 0"),
    ],
)
def test_wrong_schedules_are_refused(tiny_pipeline: Any, settings: dict[str, Any], said: str) -> None:
    for make in (EditConfig, lambda **given: tiny_pipeline(random_clip(1), PROMPT, **given)):
        with pytest.raises(UserError, match=said):
            make(**settings)


def test_a_batch_records_schedule_and_adapters(tmp_path: Path) -> None:
    write_clip(tmp_path / "in.mp4", random_clip(2, 32, 48), 12)
    (tmp_path / "list.csv").write_text("edited_type,prompt,original_video\ncolor,make it red,in.mp4\n")
    words = ["edit", "--batch", "list.csv", "--out-dir", "out", "--sigmas", "1,0.5", "--shift", "4"]
    rvedit(*words, cwd=tmp_path, check=0)
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert (settings["sigmas"], settings["shift"], settings["lora"]) == ([1, 0.5], 4, None)
    assert "1 skipped" in rvedit(*words, cwd=tmp_path, check=0).stdout
    other = rvedit(*words[:-1], "5", cwd=tmp_path, check=2)
    assert "were made with shift 4.0, not 5.0" in other.stderr
    with_lora = rvedit(*words, "--lora", "fish.safetensors:0.5", cwd=tmp_path, check=2)
    assert "were made with lora None, not ['fish.safetensors:0.5']" in with_lora.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sigmas", "1;0.5"], "--sigmas 1;0.5: give numbers between commas"),
        (["--sigmas", "0.5,1"], "--sigmas 0.5,1: give falling numbers"),
        (["--shift", "-1"], "--shift -1: give a number above 0"),
        (["--lora", "fish.safetensors:0.5"], "--lora fish.safetensors: no such file"),
    ],
)
def test_the_command_says_what_is_wrong(tmp_path: Path, words: list[str], said: str) -> None:
    write_clip(tmp_path / "in.mp4", random_clip(2, 32, 48), 12)
    done = rvedit("edit", "in.mp4", "make it red", *words, cwd=tmp_path, check=2)
    assert said in done.stderr
