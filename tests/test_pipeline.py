"""Algorithm 2 end to end: clips of any length and size, checkpoints in and out, errors that name the key."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CORPUS, WatchCalls, edit, edit_latents, random_clip
from diffusers import AutoencoderKLWan
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

import rvedit
from rvedit.editing.config import EditConfig, Progress
from rvedit.editing.long_video import edit_video, edit_videos_together
from rvedit.io.errors import UserError
from rvedit.io.frames import to_model_range
from rvedit.models.autoencoder import decode, encode
from rvedit.models.model_spec import model_spec
from rvedit.models.presets import NANO_VAE
from rvedit.pipelines.checkpoints import MODULE_CLASSES, build_from_scratch, load_checkpoint
from rvedit.pipelines.pipeline_rvedit import RVEDiTPipeline
from rvedit.playground.bundle import bundle_nano

INSTRUCTION = "make the fish orange"
ONE_STEP = EditConfig(num_inference_steps=1, detail=0)
KEY = "blocks.1.attn2.to_k.weight"


@pytest.fixture(scope="module")
def saved(tiny_pipeline: RVEDiTPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    tiny_pipeline.save_pretrained(folder)
    return folder


def window_latents(pipeline: RVEDiTPipeline, instruction: str = INSTRUCTION, **settings: Any) -> torch.Tensor:
    return edit_latents(pipeline, random_clip(9), instruction, **settings)


@pytest.mark.parametrize(
    ("num_frames", "height", "width"),
    [
        (1, 32, 32),
        (2, 37, 53),
        (9, 32, 48),
        (10, 61, 30),
        (30, 33, 35),
        (1, 1, 1),
        (5, 3, 200),
        (2, 240, 320),
    ],
)
def test_clips_come_out_in_the_length_and_size_they_went_in(
    tiny_pipeline: RVEDiTPipeline, num_frames: int, height: int, width: int
) -> None:
    edited = edit(tiny_pipeline, random_clip(num_frames, height, width), INSTRUCTION, ONE_STEP)
    assert edited.shape == (num_frames, height, width, 3)
    assert edited.dtype == np.uint8


def test_frames_stream_out_before_the_clip_is_read(tiny_pipeline: RVEDiTPipeline) -> None:
    read = 0

    def endless() -> Iterator[np.ndarray]:
        nonlocal read
        while True:
            read += 1
            yield random_clip(1, seed=read)[0]

    stream = edit_video(tiny_pipeline, endless(), INSTRUCTION, ONE_STEP)
    for _ in range(9):
        next(stream)
    assert read == 10, "a window of 9, and one frame ahead"
    next(stream)
    assert read == 14, "one stride more"


def test_the_multimodal_llm_is_shown_real_frames_alone(
    tiny_pipeline: RVEDiTPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows are padded for the VAE only: of 11 frames, the second window has the last 7."""
    shown = []
    encode_tokens = tiny_pipeline._encode_tokens
    monkeypatch.setattr(
        tiny_pipeline, "_encode_tokens", lambda *given: shown.append(given[1]) or encode_tokens(*given)
    )
    clip = random_clip(11)
    edit(tiny_pipeline, clip, INSTRUCTION, ONE_STEP)
    tiny_pipeline(clip[:7], INSTRUCTION, num_inference_steps=1, output_type="latent")
    assert [len(frames[0]) for frames in shown] == [9, 7, 7]
    assert np.array_equal(shown[1][0], clip[4:])


def test_a_long_clip_starts_as_its_first_window_alone(tiny_pipeline: RVEDiTPipeline) -> None:
    """Frames 0-8 are given by the first window whatever follows it."""
    clip = random_clip(30)
    whole = edit(tiny_pipeline, clip, INSTRUCTION, ONE_STEP)
    first = edit(tiny_pipeline, clip[:9], INSTRUCTION, ONE_STEP)
    assert np.array_equal(whole[:9], first)


@torch.no_grad()
def test_a_window_goes_on_from_the_one_before(tiny_pipeline: RVEDiTPipeline) -> None:
    """What is known stays to the end, whatever the model says, and the rest is drawn to go with it."""
    clip = random_clip(9)
    free = edit_latents(tiny_pipeline, clip, INSTRUCTION, num_inference_steps=4)
    known = torch.randn_like(free)[:, :, :2]
    bound = edit_latents(tiny_pipeline, clip, INSTRUCTION, num_inference_steps=4, prefix_latents=known)
    assert torch.equal(bound[:, :, :2], known)
    assert not torch.equal(bound[:, :, 2:], free[:, :, 2:])


@pytest.mark.parametrize(
    ("count", "height", "width", "preserve"), [(9, 32, 48, False), (6, 37, 61, True), (1, 32, 32, False)]
)
def test_clips_edited_together_are_as_if_edited_alone(
    tiny_pipeline: RVEDiTPipeline, count: int, height: int, width: int, preserve: bool
) -> None:
    clips = [random_clip(count, height, width), random_clip(count, height, width)[::-1].copy()]
    instructions = [INSTRUCTION, "turn the whole sky over the sea green"]
    settings = EditConfig(num_inference_steps=3, guidance_scale=2.0, seed=4, preserve=preserve)
    together = edit_videos_together(tiny_pipeline, clips, instructions, settings)
    for clip, instruction, edited in zip(clips, instructions, together, strict=True):
        alone = edit(tiny_pipeline, clip, instruction, settings)
        assert edited.shape == clip.shape
        assert np.abs(edited.astype(int) - alone).max() <= 1, "but for the order of sums"


def test_what_cannot_be_edited_together_is_refused(tiny_pipeline: RVEDiTPipeline) -> None:
    nine, ten = random_clip(9), random_clip(10)
    for clips in ([nine, ten], [ten, ten]):
        with pytest.raises(ValueError, match=r"edit them one by one"):
            edit_videos_together(tiny_pipeline, clips, [INSTRUCTION, INSTRUCTION], ONE_STEP)


def test_progress_tells_every_step_of_every_window(tiny_pipeline: RVEDiTPipeline) -> None:
    told: list[Progress] = []
    settings = EditConfig(num_inference_steps=2)
    edit(tiny_pipeline, random_clip(12), INSTRUCTION, settings, on_progress=told.append)
    assert told == [Progress(window, step, 2) for window in (1, 2) for step in (1, 2)]


def test_equal_seeds_give_equal_edits_and_others_do_not(tiny_pipeline: RVEDiTPipeline) -> None:
    clip = random_clip(10)
    edits = [edit(tiny_pipeline, clip, INSTRUCTION, EditConfig(seed=seed)) for seed in (7, 7, 8)]
    assert np.array_equal(edits[0], edits[1])
    assert not np.array_equal(edits[0], edits[2])


def test_seeds_leave_the_global_generator_alone(tiny_pipeline: RVEDiTPipeline) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    edit(tiny_pipeline, random_clip(1), INSTRUCTION, ONE_STEP)
    assert torch.equal(torch.rand(1), expected)


def test_the_edit_depends_on_the_clip_and_on_the_words(tiny_pipeline: RVEDiTPipeline) -> None:
    latents = window_latents(tiny_pipeline)
    assert latents.isfinite().all()
    assert not torch.equal(latents, window_latents(tiny_pipeline, "remove the ball"))
    other = edit_latents(tiny_pipeline, random_clip(9, seed=9), INSTRUCTION)
    assert not torch.equal(latents, other)


@pytest.mark.parametrize(("guidance", "forwards"), [(None, 3), (1.0, 3), (2.0, 6)])
def test_guidance_costs_a_second_forward_only_where_it_acts(
    tiny_pipeline: RVEDiTPipeline, count_calls: WatchCalls, guidance: float | None, forwards: int
) -> None:
    calls = count_calls(tiny_pipeline.transformer)
    encodings = count_calls(tiny_pipeline.mllm.model)
    window_latents(tiny_pipeline, num_inference_steps=3, guidance_scale=guidance)
    assert len(calls) == forwards
    assert len(encodings) == forwards // 3


def test_guidance_0_is_the_edit_without_an_instruction(tiny_pipeline: RVEDiTPipeline) -> None:
    assert_close(window_latents(tiny_pipeline, guidance_scale=0.0), window_latents(tiny_pipeline, ""))


def test_guidance_extrapolates_from_the_unconditional_velocity(tiny_pipeline: RVEDiTPipeline) -> None:
    """One Euler step is linear in the velocity, so is its end."""
    with_words = window_latents(tiny_pipeline, num_inference_steps=1)
    without = window_latents(tiny_pipeline, "", num_inference_steps=1)
    guided = window_latents(tiny_pipeline, num_inference_steps=1, guidance_scale=4.0)
    assert_close(guided, without + 4 * (with_words - without), rtol=1e-4, atol=1e-4)


def test_settings_left_open_are_the_models_own(tiny_pipeline: RVEDiTPipeline) -> None:
    explicit = window_latents(tiny_pipeline, num_inference_steps=2, guidance_scale=1.0)
    assert torch.equal(window_latents(tiny_pipeline), explicit)


# A property runs on one pipeline: hypothesis wants no function fixtures, and the session's is one.
@given(height=st.integers(1, 3000), width=st.integers(1, 3000))
def test_the_models_size_is_on_its_grid_and_of_an_area_it_knows(
    tiny_pipeline: RVEDiTPipeline, height: int, width: int
) -> None:
    rows, columns = tiny_pipeline.model_size(height, width)
    assert rows % 16 == columns % 16 == 0
    assert rows > 0
    assert columns > 0
    ratio = max(height, width) / min(height, width)
    if ratio < 4:  # longer strips cannot be both on the grid and of a known area
        assert 32 * 32 <= rows * columns <= 48 * 48
    if height == width:
        assert rows == columns


def test_a_size_that_the_model_knows_is_left_alone(tiny_pipeline: RVEDiTPipeline) -> None:
    assert tiny_pipeline.model_size(32, 48) == (32, 48)
    assert tiny_pipeline.model_size(48, 32) == (48, 32)


@torch.no_grad()
def test_latents_are_normalised_by_the_vaes_statistics(tiny_pipeline: RVEDiTPipeline) -> None:
    vae = tiny_pipeline.vae
    clip = to_model_range(random_clip(5))[None]
    mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1)
    std = torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1)
    raw = vae.encode(clip).latent_dist.mean
    latents = encode(vae, clip)
    assert_close(latents * std + mean, raw)
    assert_close(decode(vae, latents), vae.decode(raw).sample, rtol=1e-4, atol=1e-4)


def assert_same_editor(loaded: RVEDiTPipeline, original: RVEDiTPipeline) -> None:
    """Equal weights and settings; equal edits up to the rounding of differently aligned memory."""
    for name in MODULE_CLASSES:
        ours, theirs = (getattr(pipeline, name).state_dict() for pipeline in (loaded, original))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name
    names = ("max_text_length", "window_frames", "window_stride", "min_area", "max_area")
    names += ("default_steps", "default_guidance")
    assert [loaded.config[name] for name in names] == [original.config[name] for name in names]
    assert loaded.scheduler.config.shift == original.scheduler.config.shift == 3.0
    assert_close(window_latents(loaded), window_latents(original), rtol=0, atol=1e-5)
    clip = random_clip(10, 37, 53)
    edits = [edit(pipeline, clip, INSTRUCTION).astype(int) for pipeline in (loaded, original)]
    assert abs(edits[0] - edits[1]).max() <= 1


def test_a_saved_editor_edits_the_same(tiny_pipeline: RVEDiTPipeline, saved: Path) -> None:
    assert_same_editor(load_checkpoint(saved), tiny_pipeline)


def test_from_pretrained_reads_it_too(tiny_pipeline: RVEDiTPipeline, saved: Path) -> None:
    assert_same_editor(RVEDiTPipeline.from_pretrained(saved), tiny_pipeline)


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
def test_nano_loads_as_pipelines_of_diffusers_do(dtype: torch.dtype | None) -> None:
    """Whatever the dtype: the VAE in fp32, and the edit of the command line's loader."""
    loaded = RVEDiTPipeline.from_pretrained(rvedit.NANO, **({"torch_dtype": dtype} if dtype else {}))
    assert loaded.transformer.dtype == loaded.mllm.dtype == (dtype or torch.float32)
    assert loaded.vae.dtype == torch.float32
    ours = load_checkpoint(rvedit.NANO, dtype or torch.float32)
    size = loaded.model_size(64, 64)
    clip = random_clip(3, *size)
    edits = [
        edit(pipe, clip, INSTRUCTION, num_inference_steps=2, detail=0, seed=5) for pipe in (loaded, ours)
    ]
    assert np.array_equal(*edits)
    generator = torch.Generator().manual_seed(5)
    called = loaded(clip, INSTRUCTION, num_inference_steps=2, generator=generator).frames[0]
    assert np.array_equal((called * 255).round().astype(np.uint8), edits[0])


def test_it_loads_as_pipelines_of_diffusers_do(tiny_pipeline: RVEDiTPipeline, saved: Path) -> None:
    loaded = RVEDiTPipeline.from_pretrained(saved)
    assert type(loaded) is RVEDiTPipeline
    assert_same_editor(loaded, tiny_pipeline)


def test_another_dtype_is_honoured(saved: Path) -> None:
    loaded = load_checkpoint(saved, torch.bfloat16)
    assert loaded.transformer.dtype == torch.bfloat16
    assert loaded.vae.dtype == torch.float32, "latents are coarse otherwise"
    edited = edit(loaded, random_clip(2), INSTRUCTION, ONE_STEP)
    assert edited.shape == (2, 32, 32, 3)


def test_a_checkpoint_is_safetensors_and_text(saved: Path) -> None:
    files = [path for path in saved.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt", ".md"}
    weights = [path for path in files if path.suffix == ".safetensors"]
    assert {path.parent.name for path in weights} == {
        "transformer", "connector", "mllm", "text_encoder", "vae"
    }  # fmt: skip
    for path in weights:
        assert load_file(path)


def test_a_folder_without_an_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model_index\.json"):
        load_checkpoint(tmp_path)
    with pytest.raises(UserError, match="nowhere"):
        load_checkpoint(tmp_path / "nowhere")


def test_another_pipelines_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(UserError, match="FluxPipeline"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "folder", ["transformer", "connector", "mllm", "text_encoder", "vae", "tokenizer", "scheduler"]
)
def test_a_missing_folder_is_named(saved: Path, tmp_path: Path, folder: str) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(saved, broken)
    shutil.rmtree(broken / folder)
    with pytest.raises(UserError, match=folder):
        load_checkpoint(broken)


def test_an_empty_folder_is_named(saved: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(saved, broken)
    (broken / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(UserError, match="scheduler: cannot be read"):
        load_checkpoint(broken)


def with_tensors(
    saved: Path, folder: Path, module: str, change: Callable[[dict[str, torch.Tensor]], None]
) -> Path:
    """A copy of the checkpoint with one module's tensors changed."""
    shutil.copytree(saved, folder)
    (path,) = (folder / module).glob("*.safetensors")
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


def renamed(tensors: dict[str, torch.Tensor], key: str) -> None:
    tensors[f"{key}_v2"] = tensors.pop(key)


def reshaped(tensors: dict[str, torch.Tensor], key: str) -> None:
    tensors[key] = torch.zeros(3, 5)


def removed(tensors: dict[str, torch.Tensor], key: str) -> None:
    del tensors[key]


@pytest.mark.parametrize("change", [removed, renamed, reshaped])
@pytest.mark.parametrize(
    ("module", "key"),
    [
        ("transformer", KEY),
        ("connector", "queries"),
        ("vae", "decoder.conv_in.weight"),
        ("mllm", "model.norm.weight"),
        ("text_encoder", "encoder.final_layer_norm.weight"),
    ],
)
def test_a_key_that_does_not_fit_is_named(
    saved: Path, tmp_path: Path, module: str, key: str, change: Callable[[dict[str, torch.Tensor], str], None]
) -> None:
    broken = with_tensors(saved, tmp_path / "broken", module, lambda tensors: change(tensors, key))
    with pytest.raises(UserError) as caught:
        load_checkpoint(broken)
    message = str(caught.value)
    # transformers keeps the LLM under another prefix in memory; what follows it is the same.
    assert key.removeprefix("model.") in message
    assert module in message
    assert "\n" not in message
    if change is renamed:
        assert f"{key}_v2".removeprefix("model.") in message


def test_a_damaged_file_is_one_clear_line(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "broken")
    (path,) = (tmp_path / "broken" / "transformer").glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="transformer") as caught:
        load_checkpoint(tmp_path / "broken")
    assert "\n" not in str(caught.value)


def test_nano_is_built_by_its_seed_and_edits() -> None:
    torch.manual_seed(0)
    vae = AutoencoderKLWan(**NANO_VAE)
    first, second, other = (
        build_from_scratch(model_spec("nano"), CORPUS, vae, routing_depth, shift=3.0, seed=seed)
        for routing_depth, seed in ((None, 1), (2, 1), (None, 2))
    )
    weights = [dict(pipeline.transformer.named_parameters()) for pipeline in (first, second, other)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not torch.equal(weights[0][KEY], weights[2][KEY])
    assert [p.transformer.config.routing_depth for p in (first, second)] == [4, 2]
    modules = (first.transformer, first.connector, first.mllm, first.text_encoder, first.vae)
    assert 2 * sum(p.numel() for module in modules for p in module.parameters()) < 40e6, "bytes in bf16"
    assert edit(first, random_clip(1, 50, 60), INSTRUCTION, ONE_STEP).shape == (1, 50, 60, 3)


@pytest.mark.slow
def test_reference_clips_never_touch_inference() -> None:
    """Editing imports neither the training code nor the losses nor the playground."""
    code = (
        "import sys, rvedit.pipelines.loading, rvedit.editing.batch, rvedit.editing.long_video\n"
        "never = ('rvedit.training', 'rvedit.losses', 'rvedit.playground')\n"
        "loaded = [m for m in sys.modules if m.startswith(never)]\n"
        "sys.exit(' '.join(loaded) or 0)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_another_decoder_is_embedded_and_another_encoder_is_not(saved: Path, tmp_path: Path) -> None:
    bundle_nano(str(saved), tmp_path / "plain")
    vae = AutoencoderKLWan.from_pretrained(saved, subfolder="vae")
    with torch.no_grad():
        vae.decoder.conv_in.bias.add_(1)
    vae.save_pretrained(tmp_path / "run" / "model" / "vae")
    bundle_nano(str(saved), tmp_path / "changed", str(tmp_path / "run"))
    plain, changed = (load_checkpoint(tmp_path / name / "nano") for name in ("plain", "changed"))
    assert torch.allclose(changed.vae.decoder.conv_in.bias, plain.vae.decoder.conv_in.bias + 1, atol=0.01)
    assert torch.equal(changed.transformer.proj_out.weight, plain.transformer.proj_out.weight)
    with torch.no_grad():
        vae.encoder.conv_in.bias.add_(1)
    vae.save_pretrained(tmp_path / "run" / "model" / "vae")
    with pytest.raises(ValueError, match="its encoder is not that of"):
        bundle_nano(str(saved), tmp_path / "wrong", str(tmp_path / "run"))
    assert not (tmp_path / "wrong").exists()
