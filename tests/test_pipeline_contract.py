"""The habits of diffusers' pipelines, and the one driver for long clips, against straight-line references."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import edit, make_pipeline, random_clip
from PIL import Image
from torch.testing import assert_close

import rvedit
from rvedit.editing.config import EditConfig
from rvedit.editing.long_video import count_windows, edit_videos_together
from rvedit.io.frames import resize_frames, to_frames, to_model_range
from rvedit.io.video import write_clip
from rvedit.models.autoencoder import decode, encode
from rvedit.pipelines.pipeline_rvedit import RVEDiTPipeline

PROMPT = "make the fish orange"


@pytest.fixture
def pipe(tiny_tokenizer: Any) -> RVEDiTPipeline:
    pipeline = make_pipeline(tiny_tokenizer)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def call(pipe: RVEDiTPipeline, video: Any, **arguments: Any) -> Any:
    arguments = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(1), **arguments}
    output = pipe(video, PROMPT, **arguments)
    return output if isinstance(output, tuple) else output.frames


FORMS = {
    "uint8 array": lambda clip: clip,
    "arrays": list,
    "float array": lambda clip: clip.astype(np.float32) / 255,
    "PIL images": lambda clip: [Image.fromarray(frame) for frame in clip],
    "uint8 tensor": lambda clip: torch.from_numpy(clip).movedim(-1, -3),
    "float tensor": lambda clip: torch.from_numpy(clip).movedim(-1, -3) / 255,
    "float tensors": lambda clip: list(torch.from_numpy(clip).movedim(-1, -3) / 255),
    "a batch of one": lambda clip: clip[None],
}


@pytest.mark.parametrize("form", FORMS)
def test_a_video_comes_in_every_usual_form(pipe: RVEDiTPipeline, form: str) -> None:
    clip = random_clip(6)
    assert np.array_equal(call(pipe, FORMS[form](clip)), call(pipe, clip))


@pytest.mark.parametrize(
    ("video", "said"),
    [
        ([], "no frames"),
        (np.zeros((3, 8, 8), np.uint8), "shape"),
        (np.full((2, 8, 8, 3), 7.0), "values from"),
        (np.zeros((2, 8, 8, 3), np.int64), "int64"),
        ([random_clip(2), random_clip(3)], "unequal"),
        (["clip.mp4"], "holds a str"),
    ],
)
def test_other_forms_are_refused(pipe: RVEDiTPipeline, video: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call(pipe, video)


def test_frames_come_out_as_asked(pipe: RVEDiTPipeline) -> None:
    clip = random_clip(6, 32, 48)
    array = call(pipe, clip)
    assert (array.shape, array.dtype) == ((1, 6, 32, 48, 3), np.float32)
    assert 0 <= array.min() < array.max() <= 1
    tensor = call(pipe, clip, output_type="pt")
    assert_close(tensor.movedim(-3, -1).numpy(), array)
    (pictures,) = call(pipe, clip, output_type="pil")
    levels = (array[0] * 255).round().astype(np.uint8)
    assert np.array_equal(np.stack([np.asarray(picture) for picture in pictures]), levels)
    latents = call(pipe, clip, output_type="latent")
    assert latents.shape == (1, pipe.vae.config.z_dim, 3, 2, 3)
    with torch.no_grad():
        decoded = to_frames(decode(pipe.vae, latents)[0])[:6]
    assert np.abs(decoded.astype(int) - (array[0] * 255).round()).max() <= 1
    as_tuple = call(pipe, clip, output_type="latent", return_dict=False)
    assert torch.equal(as_tuple[0], latents)


def test_a_batch_has_a_prompt_for_each_clip(pipe: RVEDiTPipeline) -> None:
    clips = [random_clip(5), random_clip(5, seed=3)]
    noise = torch.randn(1, pipe.vae.config.z_dim, 2, 2, 2)
    prompts = [PROMPT, "remove the ball from the sand"]
    both = pipe(clips, prompts, num_inference_steps=2, latents=noise.expand(2, -1, -1, -1, -1)).frames
    for clip, prompt, edited in zip(clips, prompts, both, strict=True):
        alone = pipe(clip, prompt, num_inference_steps=2, latents=noise).frames[0]
        assert np.abs(edited - alone).max() < 1e-2, "but for the order of sums"


def test_a_size_may_be_chosen(pipe: RVEDiTPipeline) -> None:
    clip = random_clip(5, 61, 45)
    assert call(pipe, clip).shape[2:4] == pipe.model_size(61, 45)
    edited = call(pipe, clip, height=32, width=64)
    assert edited.shape[2:4] == (32, 64)
    assert np.array_equal(edited, call(pipe, resize_frames(clip, 32, 64), height=32, width=64))


def test_a_callback_sees_and_changes_latents(pipe: RVEDiTPipeline) -> None:
    seen: list[tuple[int, float]] = []

    def watch(pipeline: Any, step: int, timestep: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        assert pipeline is pipe
        seen.append((step, float(timestep)))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 1 else tensors

    plain = call(pipe, random_clip(5), output_type="latent")
    zeroed = call(pipe, random_clip(5), output_type="latent", callback_on_step_end=watch)
    assert [step for step, _ in seen] == [0, 1]
    assert [time for _, time in seen] == [float(t) for t in pipe.scheduler.timesteps]
    assert plain.abs().max() > 0
    assert zeroed.abs().max() == 0
    watched = call(pipe, random_clip(5), output_type="latent", callback_on_step_end=lambda *_: {})
    assert torch.equal(plain, watched), "one that returns nothing changes nothing"


def test_it_shows_progress(pipe: RVEDiTPipeline, capsys: pytest.CaptureFixture[str]) -> None:
    call(pipe, random_clip(1))
    assert capsys.readouterr().err == ""
    pipe.set_progress_bar_config(disable=False)
    call(pipe, random_clip(1))
    assert "2/2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "kind", "said"),
    [
        ({"strength": 0.5}, TypeError, "strength"),
        ({"mask": 1}, TypeError, "mask"),
        ({"negative_prompt": "blurry"}, ValueError, "`negative_prompt` has no effect with"),
        ({"latents": torch.zeros(1, 8, 2, 2, 2)}, ValueError, "give one of them"),
        ({"latents": torch.zeros(1, 8, 9, 2, 2), "generator": None}, ValueError, "`latents` have shape"),
        ({"height": 32}, ValueError, "both or neither"),
        ({"height": 33, "width": 32}, ValueError, "multiples of 16"),
        ({"num_inference_steps": 0}, ValueError, "`num_inference_steps` is 0"),
        ({"guidance_scale": -1.0}, ValueError, "`guidance_scale` is -1"),
        ({"output_type": "mp4"}, ValueError, "`output_type` is mp4"),
        ({"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}, ValueError, "prompt_embeds"),
    ],
)
def test_what_is_not_read_is_refused(
    pipe: RVEDiTPipeline, arguments: dict[str, Any], kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=said):
        call(pipe, random_clip(5), **arguments)


def test_a_longer_clip_is_for_the_driver(pipe: RVEDiTPipeline) -> None:
    with pytest.raises(ValueError, match=r"10 frames, more than a window of 9: .*rvedit\.edit_video"):
        call(pipe, random_clip(10))
    with pytest.raises(ValueError, match="`prompt` has 2 texts for 1 clips"):
        pipe(random_clip(5), ["a", "b"])


def test_guidance_moves_away_from_the_negative_prompt(pipe: RVEDiTPipeline) -> None:
    clip = random_clip(5)
    guided = {"guidance_scale": 3.0, "output_type": "latent", "num_inference_steps": 1}
    plain = call(pipe, clip, **guided)
    assert torch.equal(plain, call(pipe, clip, negative_prompt="", **guided))
    assert not torch.equal(plain, call(pipe, clip, negative_prompt="remove the ball", **guided))
    unguided = call(pipe, clip, guidance_scale=1.0, output_type="latent", num_inference_steps=1)
    same = call(pipe, clip, negative_prompt=PROMPT, **guided)
    assert_close(same, unguided, rtol=1e-4, atol=1e-5)


def lora(pipe: RVEDiTPipeline) -> dict[str, torch.Tensor]:
    """Adapters of rank 2 for a self-attention and a routed cross-attention, as diffusers saves them."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name in ("blocks.0.attn1.to_q", "blocks.3.attn2.to_k"):
        rows, columns = pipe.transformer.get_submodule(name).weight.shape
        weights[f"transformer.{name}.lora_A.weight"] = torch.randn(2, columns, generator=generator)
        weights[f"transformer.{name}.lora_B.weight"] = torch.randn(rows, 2, generator=generator)
    return weights


def test_lora_weights_are_loaded_scaled_and_unloaded(pipe: RVEDiTPipeline, tmp_path: Path) -> None:
    clip = random_clip(5)
    plain = call(pipe, clip)
    weights = lora(pipe)
    RVEDiTPipeline.save_lora_weights(
        tmp_path, {k.removeprefix("transformer."): v for k, v in weights.items()}
    )
    pipe.load_lora_weights(tmp_path, adapter_name="fish")
    adapted = call(pipe, clip)
    assert np.abs(adapted - plain).max() > 1e-2
    pipe.set_adapters(["fish"], [0.0])
    assert_close(call(pipe, clip), plain, rtol=0, atol=1e-6)
    pipe.set_adapters("fish", 1.0)
    assert_close(call(pipe, clip), adapted, rtol=0, atol=1e-6)
    pipe.unload_lora_weights()
    assert np.array_equal(call(pipe, clip), plain)


def test_a_folder_of_version_0_1_is_read(pipe: RVEDiTPipeline, tmp_path: Path) -> None:
    pipe.register_to_config(shared_noise_ratio=0.25)
    pipe.save_pretrained(tmp_path / "new")
    shutil.copytree(tmp_path / "new", tmp_path / "old")
    index = json.loads((tmp_path / "new" / "model_index.json").read_text())
    index["noise_share"] = index.pop("shared_noise_ratio")
    for name in ("transformer", "connector"):
        assert index[name][0].startswith("rvedit.models.")
        index[name][0] = index[name][0].replace("rvedit.models.", "rvedit.model.")
    (tmp_path / "old" / "model_index.json").write_text(json.dumps(index))
    for read in (RVEDiTPipeline.from_pretrained, rvedit.load_pipeline):
        again = read(str(tmp_path / "old"))
        assert again.config.shared_noise_ratio == 0.25
        np.testing.assert_allclose(call(again, random_clip(3)), call(pipe, random_clip(3)), atol=1e-5)


@torch.no_grad()
def test_a_long_clip_is_edited_window_by_window(pipe: RVEDiTPipeline) -> None:
    """The driver against a straight line: overlapping windows, shared noise, one causal decoding."""
    clip = random_clip(15, 32, 48)  # windows of frames 0-8, 4-12 and 8-14, the last padded to 9
    generator = torch.Generator().manual_seed(3)
    shape = (1, pipe.vae.config.z_dim, 3, 2, 3)
    noise = torch.randn(shape, generator=generator)
    torch.randn((*shape[:2], 1, *shape[3:]), generator=generator)  # what frames would share
    padded = np.concatenate([clip, clip[-1:].repeat(2, axis=0)])
    latents = None
    kept: list[torch.Tensor] = []
    frames = np.zeros((0, 32, 48, 3), np.uint8)
    for start in (0, 4, 8):
        prefix = None
        if latents is not None:
            fresh = torch.randn((*shape[:2], 1, *shape[3:]), generator=generator)
            noise = torch.cat([noise[:, :, 1:], fresh], dim=2)
            first = encode(pipe.vae, to_model_range(frames[start : start + 1])[None])
            prefix = torch.cat([first, latents[:, :, 2:]], dim=2)
        latents = pipe(
            padded[start : start + 9], PROMPT, height=32, width=48, num_inference_steps=2, latents=noise,
            prefix_latents=prefix, output_type="latent",
        ).frames  # fmt: skip
        kept.append(latents if prefix is None else latents[:, :, 2:])
        frames = to_frames(decode(pipe.vae, torch.cat(kept, dim=2))[0])
    edited = edit(pipe, clip, PROMPT, num_inference_steps=2, seed=3, detail=0)
    assert edited.shape == clip.shape
    assert np.abs(edited.astype(int) - frames[:15]).max() <= 1


def test_the_driver_reads_files_and_every_form(pipe: RVEDiTPipeline, tmp_path: Path) -> None:
    clip = random_clip(10)
    write_clip(tmp_path / "in.mkv", clip, 12)
    config = EditConfig(num_inference_steps=1)
    expected = edit(pipe, clip, PROMPT, config)
    for form in ("arrays", "PIL images", "float tensor"):
        assert np.array_equal(edit(pipe, FORMS[form](clip), PROMPT, config), expected)
    assert edit(pipe, tmp_path / "in.mkv", PROMPT, config).shape == clip.shape
    assert count_windows(pipe, 10) == 2
    with pytest.raises(TypeError, match="stepz"):
        edit(pipe, clip, PROMPT, stepz=3)
    with pytest.raises(ValueError, match="num_inference_steps is 0"):
        edit(pipe, clip, PROMPT, num_inference_steps=0)
    with pytest.raises(ValueError, match="2 clips: edit them one by one"):
        edit(pipe, np.stack([clip, clip]), PROMPT)


def test_a_pipeline_derived_from_it_is_edited_as_it_is(pipe: RVEDiTPipeline) -> None:
    class Derived(RVEDiTPipeline):
        pass

    derived = Derived(**pipe.components, **{name: pipe.config[name] for name in Derived.setting_names()})
    derived.set_progress_bar_config(disable=True)
    clip, config = random_clip(10), EditConfig(num_inference_steps=1)
    assert np.array_equal(edit(derived, clip, PROMPT, config), edit(pipe, clip, PROMPT, config))


def test_clips_edited_together_keep_the_size_that_was_chosen_once(
    pipe: RVEDiTPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the model's size of the model's size is another one, as in a narrow range of areas."""
    pipe.register_to_config(min_area=1056, max_area=1280)
    size = pipe.model_size(8, 8)
    assert pipe.model_size(*size) != size
    clips = [random_clip(5, 8, 8), random_clip(5, 8, 8, seed=2)]
    seen = []
    encode_tokens = pipe._encode_tokens
    monkeypatch.setattr(pipe, "_encode_tokens", lambda *given: seen.append(given[1]) or encode_tokens(*given))
    edit_videos_together(pipe, clips, [PROMPT, PROMPT], EditConfig(num_inference_steps=1))
    assert {frames.shape[1:3] for frames in seen[0]} == {size}, "the MLLM sees what the VAE encodes"
