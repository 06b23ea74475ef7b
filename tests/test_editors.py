"""Lucy-Edit, VACE and Ditto: tiny random pipelines of diffusers' own classes, driven as the real ones are."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import edit, make_pipeline, make_text_encoder, random_clip
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    LucyEditPipeline,
    WanPipeline,
    WanTransformer3DModel,
    WanVACEPipeline,
    WanVACETransformer3DModel,
)
from foreign import CHANNELS, make_wan_vae
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from rvedit.editing.long_video import BaselineSampler, edit_video
from rvedit.io.errors import UserError
from rvedit.io.video import write_clip
from rvedit.pipelines.adapters import add_lora_weights
from rvedit.pipelines.baselines import BASELINES, NativeFormat
from rvedit.pipelines.loading import load_pipeline
from rvedit_cli.main import app

WORDS = {"lucy": {}, "vace": {"description": "an orange fish"}}
SMALL = NativeFormat(32, 48, 5, 12.0)
SIZES = {
    "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "out_channels": 16,
    "text_dim": 32, "freq_dim": 32, "ffn_dim": 32, "num_layers": 2, "rope_max_seq_len": 32,
}  # fmt: skip


def save_pipeline(folder, kind, tokenizer):
    torch.manual_seed(0)
    vae = AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    parts = {
        "tokenizer": tokenizer,
        "text_encoder": make_text_encoder(tokenizer),
        "vae": vae,
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=5.0),
    }
    if kind == "lucy":
        pipeline = LucyEditPipeline(**parts, transformer=WanTransformer3DModel(**SIZES, in_channels=32))
    else:
        transformer = WanVACETransformer3DModel(**SIZES, in_channels=16, vace_layers=[0], vace_in_channels=96)
        pipeline = WanVACEPipeline(**parts, transformer=transformer)
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tiny_tokenizer, tmp_path_factory):
    root = tmp_path_factory.mktemp("editors")
    return {kind: save_pipeline(root / kind, kind, tiny_tokenizer) for kind in ("lucy", "vace")}


@pytest.fixture(autouse=True)
def _small_native_formats(monkeypatch):
    for name in BASELINES:
        monkeypatch.setitem(BASELINES, name, replace(BASELINES[name], native=SMALL))


def small(folders, kind):
    return load_pipeline(str(folders[kind]))


def edited(pipe, clip, **settings):
    seen = []
    settings = {"num_inference_steps": 2, "guidance_scale": 1.0, **settings}
    frames = edit(pipe, iter(clip), "make the fish orange", on_progress=seen.append, **settings)
    return frames, [(p.window, p.step, p.num_steps) for p in seen]


@pytest.mark.parametrize(
    ("num_frames", "height", "width"), [(1, 33, 50), (5, 32, 48), (7, 61, 30), (12, 40, 40)]
)
@pytest.mark.parametrize("kind", ["lucy", "vace"])
def test_what_comes_back_has_the_sources_length_and_size(folders, kind, num_frames, height, width):
    clip = random_clip(num_frames, height, width)
    result, progress = edited(small(folders, kind), clip, **WORDS[kind])
    assert result.shape == clip.shape
    assert progress == [(w + 1, s, 2) for w in range(-(-num_frames // 5)) for s in (1, 2)]
    assert result.std() > 1, "something is drawn"


def test_it_sees_its_native_size_length_and_rate(folders, monkeypatch):
    editor = small(folders, "lucy")
    calls = []
    real = editor.__class__.__call__

    def watch(self, **arguments):
        calls.append(arguments)
        return real(self, **arguments)

    monkeypatch.setattr(editor.__class__, "__call__", watch)
    clip = np.stack([np.full((32, 48, 3), 10 * n, np.uint8) for n in range(12)])
    result, _ = edited(
        editor, clip, frame_rate=24.0, detail=0
    )  # twice the native rate: every other frame is seen
    levels = [[int(np.asarray(f).mean().round()) for f in call["video"]] for call in calls]
    assert levels == [[0, 20, 40, 60, 80], [90, 110, 110, 110, 110]]
    assert [(call["height"], call["width"], call["num_frames"]) for call in calls] == [(32, 48, 5)] * 2
    assert len(result) == 12
    assert np.array_equal(result[0], result[1]), "an unseen frame is as the seen one before it"
    assert not np.array_equal(result[1], result[2])
    edited(editor, random_clip(1, 48, 32))
    assert (calls[-1]["height"], calls[-1]["width"]) == (48, 32), "a standing clip is edited standing"


@pytest.mark.parametrize("rate", [None, 24.0, 30.0])
@pytest.mark.parametrize("kind", ["lucy", "vace"])
def test_an_editor_that_changes_nothing_gives_back_the_source(folders, kind, rate, monkeypatch):
    """Its output is its VAE's reconstruction: at its own size, above it, at several rates, over windows."""
    sample = BaselineSampler.edit_sampled
    monkeypatch.setattr(
        BaselineSampler,
        "edit_sampled",
        lambda *given: replace(edit := sample(*given), edited=edit.reconstructed),
    )
    editor = small(folders, kind)
    for size in ((32, 48), (97, 130)):
        clip = random_clip(12, *size)
        for preserve in (False, True):
            result, _ = edited(editor, clip, **WORDS[kind], frame_rate=rate, preserve=preserve)
            assert np.abs(result.astype(int) - clip).max() <= 1


def test_native_sizes():
    native = NativeFormat(480, 832, 81, 24.0)
    assert native.size(720, 1280, 32) == (480, 832)
    assert native.size(1280, 720, 32) == (832, 480)
    for height, width in ((1000, 1000), (1350, 1080), (800, 1920)):
        rows, columns = native.size(height, width, 32)
        assert 0.9 < rows * columns / (480 * 832) < 1.1
        assert (rows % 32, columns % 32) == (0, 0)
        assert abs(np.log(columns / rows * height / width)) < 0.1


def test_vace_wants_a_description_and_takes_a_mask(folders, tmp_path, monkeypatch):
    editor = small(folders, "vace")
    clip = random_clip(5, 32, 48)
    with pytest.raises(UserError, match="description of the result"):
        edit_video(editor, iter(clip), "make the fish orange")
    mask = np.zeros((5, 32, 48, 3), np.uint8)
    mask[:, :, 24:] = 255
    write_clip(tmp_path / "mask.mkv", mask, 12)
    calls = []
    real = editor.__class__.__call__
    monkeypatch.setattr(
        editor.__class__, "__call__", lambda self, **kw: (calls.append(kw), real(self, **kw))[1]
    )
    masked, _ = edited(editor, clip, description="an orange fish", mask=tmp_path / "mask.mkv")
    whole, _ = edited(editor, clip, description="an orange fish")
    assert [call["prompt"] for call in calls] == ["an orange fish"] * 2
    seen = np.asarray(calls[0]["mask"][0].convert("L"))
    assert seen[:, :20].max() == 0, "the model sees the mask with its soft border"
    assert seen[:, 24:].min() == 255
    assert np.asarray(calls[1]["mask"][0].convert("L")).min() == 255
    assert not np.array_equal(masked, whole)


def test_by_name_and_by_command(folders, tmp_path, monkeypatch, tiny_tokenizer):
    """`--model lucy` with weights of one's own, and Ditto's adapters on VACE."""
    monkeypatch.setenv("RVEDIT_LUCY", str(folders["lucy"]))
    monkeypatch.setenv("RVEDIT_VACE", str(folders["vace"]))
    write_clip(tmp_path / "in.mp4", random_clip(6, 32, 48), 12)
    arguments = ["edit", str(tmp_path / "in.mp4"), "make it red", "--steps", "1", "--guidance", "1", "--json"]
    result = CliRunner().invoke(app, [*arguments, "--model", "lucy", "-o", str(tmp_path / "out.mp4")])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["num_frames"], report["width"], report["height"], report["model"]) == (6, 48, 32, "lucy")


@pytest.mark.parametrize(
    ("prefix", "middle"),
    [("", ".default"), ("pipe.vace.", ".default"), ("diffusion_model.", ""), ("vace.", "")],
)
def test_dittos_adapters_are_of_vaces_blocks(folders, tmp_path, monkeypatch, prefix, middle):
    """As DiffSynth and ComfyUI name them: what is computed is W + BA, of every matrix."""
    monkeypatch.setenv("RVEDIT_VACE", str(folders["vace"]))
    (tmp_path / "models").mkdir()
    monkeypatch.setenv("RVEDIT_DITTO", str(tmp_path))
    vace = small(folders, "vace")
    torch.manual_seed(1)
    adapters = {}
    layers = {"self_attn.q": "attn1.to_q", "cross_attn.o": "attn2.to_out.0", "ffn.0": "ffn.net.0.proj",
              "ffn.2": "ffn.net.2"}  # fmt: skip
    for theirs, ours in layers.items():
        layer = vace.transformer.vace_blocks[0].get_submodule(ours)
        rows, columns = layer.weight.shape
        up, down = torch.randn(rows, 2) / 4, torch.randn(2, columns) / 4
        name = f"{prefix}vace_blocks.0.{theirs}.lora"
        adapters |= {f"{name}_A{middle}.weight": down, f"{name}_B{middle}.weight": up}
        layer.weight.data += up @ down
    save_file(adapters, tmp_path / "models" / "ditto_global.safetensors")
    clip = random_clip(5, 32, 48)
    with_adapters, _ = edited(load_pipeline("ditto"), clip, detail=0)  # an instruction is enough
    merged, _ = edited(vace, clip, description="make the fish orange", detail=0)
    plain, _ = edited(small(folders, "vace"), clip, description="make the fish orange", detail=0)
    assert np.abs(with_adapters.astype(int) - merged).max() <= 1
    assert np.abs(plain.astype(int) - merged).max() > 1


def test_an_adapters_scale_is_its_alpha(folders, tmp_path):
    transformer = small(folders, "vace").transformer
    layer = transformer.blocks[1].attn1.to_k
    up, down = torch.randn(layer.weight.shape[0], 4), torch.randn(4, layer.weight.shape[1])
    expected = layer.weight + 0.5 * up @ down
    matrices = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(2.0)}
    file = tmp_path / "adapters.safetensors"
    save_file({f"diffusion_model.blocks.1.self_attn.k.{k}": v for k, v in matrices.items()}, file)
    add_lora_weights(transformer, file)
    transformer.fuse_lora()
    torch.testing.assert_close(transformer.blocks[1].attn1.to_k.weight, expected)


@pytest.mark.parametrize(
    ("adapters", "said"),
    [
        ({"vace_blocks.7.self_attn.q.lora_A.weight": torch.zeros(2, 24)}, "vace_blocks.7.self_attn.q.lora_A"),
        ({"blocks.0.self_attn.q.diff": torch.zeros(2)}, "blocks.0.self_attn.q.diff"),
        ({}, "holds no LoRA weights"),
        ({"blocks.0.self_attn.q.lora_A.weight": torch.zeros(2, 5),
          "blocks.0.self_attn.q.lora_B.weight": torch.zeros(5, 2)}, "does not fit"),
        ({"blocks.0.self_attn.q.lora_A.weight": torch.zeros(2, 24),
          "blocks.0.self_attn.q.lora_B.weight": torch.zeros(24, 2),
          "blocks.0.self_attn.k.alpha": torch.tensor(2.0)}, "blocks.0.self_attn.k.alpha does not fit"),
        (None, "not a complete safetensors file"),
    ],
)  # fmt: skip
def test_adapters_that_do_not_fit_are_refused(folders, tmp_path, adapters, said):
    file = tmp_path / "adapters.safetensors"
    save_file(adapters or {}, file)
    if adapters is None:
        file.write_bytes(file.read_bytes()[:5])
    with pytest.raises(UserError, match=said):
        add_lora_weights(small(folders, "vace").transformer, file)


@pytest.mark.parametrize(
    ("component", "damage", "said"),
    [
        ("transformer", "key", "missing blocks.1.attn1.to_q.weight"),
        ("vae", "cut", "not a complete safetensors file"),
        ("text_encoder", "cut", "not a complete safetensors file"),
        ("text_encoder", "gone", "model.safetensors is missing"),
    ],
)
def test_what_a_pipelines_folder_lacks_is_named(folders, tmp_path, component, damage, said):
    """diffusers would make random weights in their place, and edit with them."""
    shutil.copytree(folders["lucy"], tmp_path / "lucy")
    (file,) = (tmp_path / "lucy" / component).glob("*.safetensors")
    if damage == "key":
        weights = load_file(file)
        del weights["blocks.1.attn1.to_q.weight"]
        save_file(weights, file)
    elif damage == "cut":
        os.truncate(file, file.stat().st_size // 2)
    else:
        file.unlink()
    with pytest.raises(UserError, match=said):
        load_pipeline(str(tmp_path / "lucy"))


def test_what_they_cannot_do_is_said(folders, tmp_path, tiny_tokenizer):
    for pipe in (make_pipeline(tiny_tokenizer), small(folders, "lucy")):
        with pytest.raises(ValueError, match="`description`: this model reads"):
            edit_video(pipe, random_clip(1), "red", description="a fish")
    with pytest.raises(ValueError, match="a WanPipeline is not a supported editing pipeline"):
        edit_video(WanPipeline.from_pretrained(folders["lucy"]), random_clip(1), "red")
    (tmp_path / "model_index.json").write_text('{"_class_name": "LucyEditPipeline"}')
    with pytest.raises(UserError, match="cannot be loaded"):
        load_pipeline(str(tmp_path))


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        ("vace", ["--mask", "nowhere.png", "--description", "a fish"], "nowhere.png: no such file"),
        ("vace", [], "`description`: this model reads a description"),
        ("ditto", ["--description", "a fish"], "`description`: this model reads the instruction"),
        ("nano", ["--description", "a fish"], "`description`: this model reads the instruction"),
        ("lucy", ["--fast", "magcache"], "choose taylorseer"),
        ("lucy", ["--attention", "fast"], "`attention` fast: choose one of"),
    ],
)
def test_it_is_said_before_weights_are_fetched(tmp_path, monkeypatch, model, options, said):
    """What the variables name would be fetched from the hub, which is not to be had."""
    monkeypatch.chdir(tmp_path)
    for variable in ("RVEDIT_LUCY", "RVEDIT_VACE"):
        monkeypatch.setenv(variable, "nobody/nothing")
    write_clip(tmp_path / "in.png", random_clip(1, 32, 48), 12)
    result = CliRunner().invoke(app, ["edit", "in.png", "make it red", "--model", model, *options])
    assert isinstance(result.exception, UserError)
    assert said in str(result.exception)


@pytest.mark.parametrize("kind", ["lucy", "vace"])
def test_in_bf16_the_vae_stays_in_fp32(folders, kind):
    editor = load_pipeline(str(folders[kind]), "cpu", "bf16")
    assert editor.transformer.dtype == torch.bfloat16
    assert editor.vae.dtype == torch.float32
    result, _ = edited(editor, random_clip(5, 32, 48), **WORDS[kind])
    assert result.std() > 1, "something is drawn"


def test_vaces_hints_are_quantised_with_its_blocks(folders):
    editor = load_pipeline(str(folders["vace"]), quantization="fp8")
    transformer = editor.transformer
    for block in (transformer.blocks[1], transformer.vace_blocks[0]):
        assert block.ffn.net[2].weight.dtype == torch.float8_e4m3fn
    result, _ = edited(editor, random_clip(5, 32, 48), description="an orange fish")
    assert result.std() > 1, "something is drawn"


def test_lucy_on_wan22s_vae_sees_whole_patches(tiny_tokenizer, tmp_path):
    """1/16 of the side, and patches of 2: a side of 48 would be 3 latents."""
    sizes = {**SIZES, "in_channels": 2 * CHANNELS, "out_channels": CHANNELS}
    LucyEditPipeline(
        tokenizer=tiny_tokenizer,
        text_encoder=make_text_encoder(tiny_tokenizer),
        vae=make_wan_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        transformer=WanTransformer3DModel(**sizes),
        expand_timesteps=True,
    ).save_pretrained(tmp_path / "lucy")
    editor = load_pipeline(str(tmp_path / "lucy"))
    clip = random_clip(5, 88, 70)  # of the native area, 44 x 35
    assert edited(editor, clip)[0].shape == clip.shape
