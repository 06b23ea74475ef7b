"""Quantized transformers: the public gguf package writes the files, and checks what they stand for."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import foreign
import gguf
import numpy as np
import pytest
import torch
from conftest import edit_latents, random_clip
from safetensors.torch import save_file
from torch.testing import assert_close
from typer.testing import CliRunner

from rvedit.editing.memory_plan import EditPlanOptions, plan_edit
from rvedit.io.errors import UserError
from rvedit.io.records import ClipShape
from rvedit.io.video import write_clip
from rvedit.models.quantized_linear import Fp8Linear
from rvedit.pipelines.checkpoints import find_checkpoint, load_checkpoint
from rvedit.pipelines.checkpoints.quantized_files import is_quantized_file
from rvedit.pipelines.loading import load_pipeline
from rvedit_cli.main import app

INSTRUCTION = "make the fish orange"
State = dict[str, torch.Tensor]
GGUF_TYPES = {"BF16": 0.01, "F16": 0.01, "Q8_0": 0.02, "Q5_1": 0.1, "Q4_0": 0.3}
"""Types, and the most that an edit in fp32 may change, relative to the change by the edit."""


def is_matrix(name: str, tensor: torch.Tensor) -> bool:
    return name.startswith("blocks.") and tensor.ndim == 2 and name.endswith(".weight")


def write_gguf(path: Path, state: State, kind: str, prefix: str = "") -> State:
    """A file with the blocks' matrices in a type; returns the state that they stand for."""
    writer = gguf.GGUFWriter(path, "wan")
    quantization = gguf.GGMLQuantizationType[kind]
    stands_for = {}
    for name, tensor in state.items():
        values = tensor.float().numpy()
        stands_for[name] = tensor.float()
        if is_matrix(name, tensor):
            data = gguf.quants.quantize(values, quantization)
            stands_for[name] = torch.from_numpy(gguf.quants.dequantize(data, quantization).copy())
            writer.add_tensor(prefix + name, data, raw_dtype=quantization)
        else:
            writer.add_tensor(prefix + name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stands_for


def write_fp8(path: Path, state: State, scaled: bool, everything: bool = False) -> State:
    """A file of ComfyUI's kind; returns the state that it stands for."""
    written, stands_for = {}, {}
    for name, tensor in state.items():
        written[f"model.diffusion_model.{name}"], stands_for[name] = tensor, tensor
        large = everything and tensor.ndim > 1 and name.endswith("weight")
        if not (is_matrix(name, tensor) or large):
            continue
        scale = tensor.abs().max() / 448 if scaled else torch.ones(())
        small = (tensor / scale).to(torch.float8_e4m3fn)
        stands_for[name] = small.float() * scale
        written[f"model.diffusion_model.{name}"] = small
        if scaled:
            written[f"model.diffusion_model.{name.removesuffix('weight')}scale_weight"] = scale
            written[f"model.diffusion_model.{name.removesuffix('weight')}scale_input"] = torch.ones(())
    if scaled:
        written["model.diffusion_model.scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    save_file({key: tensor.contiguous().clone() for key, tensor in written.items()}, path)
    return stands_for


@pytest.fixture(scope="module")
def folder(tiny_tokenizer, tmp_path_factory) -> Path:
    return foreign.save_kiwi(tmp_path_factory.mktemp("kiwi") / "kiwi", tiny_tokenizer)


@pytest.fixture(scope="module")
def state() -> State:
    return foreign.to_original_transformer(foreign.make_wan_transformer().state_dict())


def latents_of(pipeline) -> torch.Tensor:
    return edit_latents(pipeline, random_clip(5, 256, 256), INSTRUCTION, 3, num_inference_steps=4)


def check_edit(folder: Path, file: Path, stands_for: State, tmp_path: Path) -> float:
    """The edit is that with the weights that the file stands for; returns its distance to the folder's."""
    save_file({k: v.contiguous().clone() for k, v in stands_for.items()}, tmp_path / "plain.safetensors")
    small, plain, whole = (
        latents_of(load_checkpoint(folder, transformer=given))
        for given in (file, tmp_path / "plain.safetensors", None)
    )
    # Diffusers multiplies a GGUF block's scale in fp16.
    tolerance = 5e-3 if file.suffix == ".gguf" else 1e-4
    assert_close(small, plain, rtol=0, atol=tolerance)
    return float((small - whole).norm() / whole.norm())


@pytest.mark.parametrize("kind", GGUF_TYPES)
@torch.no_grad()
def test_a_gguf_file_edits_as_the_weights_it_stands_for(folder, state, tmp_path, kind):
    stands_for = write_gguf(tmp_path / "wan.gguf", state, kind)
    distance = check_edit(folder, tmp_path / "wan.gguf", stands_for, tmp_path)
    assert distance < GGUF_TYPES[kind]


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("everything", [True, False])
@torch.no_grad()
def test_an_fp8_file_edits_as_the_weights_it_stands_for(folder, state, tmp_path, scaled, everything):
    stands_for = write_fp8(tmp_path / "wan.safetensors", state, scaled, everything)
    assert check_edit(folder, tmp_path / "wan.safetensors", stands_for, tmp_path) < 0.2


@pytest.mark.parametrize("kind", ["Q8_0", "fp8"])
def test_the_weights_stay_small(folder, state, tmp_path, kind):
    file = tmp_path / ("wan.safetensors" if kind == "fp8" else "wan.gguf")
    write_fp8(file, state, True) if kind == "fp8" else write_gguf(file, state, kind)
    blocks = load_checkpoint(folder, torch.bfloat16, file).transformer.blocks
    matrices = {name: p for name, p in blocks.named_parameters() if p.ndim == 2 and name.endswith("weight")}
    assert len(matrices) == 20
    assert all(p.element_size() == 1 for p in matrices.values())
    assert not any(p.requires_grad for p in matrices.values())
    size = sum(tensor.numel() for name, tensor in state.items() if is_matrix(name, tensor))
    assert sum(p.numel() for p in matrices.values()) <= 1.07 * size


@torch.no_grad()
def test_a_file_with_all_of_rvedits_modules(tiny_pipeline, tmp_path):
    """Diffusers' key names, and the embedders from the folder if the file lacks them."""
    tiny_pipeline.save_pretrained(tmp_path / "own")
    state = {name: tensor.clone() for name, tensor in tiny_pipeline.transformer.state_dict().items()}
    whole = latents_of(load_checkpoint(tmp_path / "own"))
    without = {name: x for name, x in state.items() if "source_embedder" not in name and "visual" not in name}
    for number, given in enumerate((state, without)):
        file = tmp_path / f"small{number}.gguf"
        write_gguf(file, given, "F16", "model.diffusion_model.")
        small = latents_of(load_checkpoint(tmp_path / "own", transformer=file))
        assert float((small - whole).norm() / whole.norm()) < 0.01


@torch.no_grad()
def test_a_gguf_file_is_a_model_of_its_own(companions, state, tmp_path):
    write_gguf(tmp_path / "wan.gguf", state, "Q8_0")
    small = load_checkpoint(find_checkpoint(str(tmp_path / "wan.gguf")))
    save_file({k: v.contiguous().clone() for k, v in state.items()}, tmp_path / "wan.safetensors")
    whole = load_checkpoint(tmp_path / "wan.safetensors")
    ours, theirs = (dict(p.transformer.config) for p in (small, whole))
    assert {k: v for k, v in ours.items() if k[0] != "_"} == {k: v for k, v in theirs.items() if k[0] != "_"}
    distance = (latents_of(small) - latents_of(whole)).norm() / latents_of(whole).norm()
    assert distance < 0.02


@torch.no_grad()
def test_lora_weights_are_added_to_small_weights(folder, state, tmp_path):
    write_gguf(tmp_path / "wan.gguf", state, "Q8_0")
    name = "diffusion_model.blocks.1.cross_attn.o"
    lora = {f"{name}.lora_A.weight": torch.randn(2, 128), f"{name}.lora_B.weight": torch.randn(128, 2)}
    save_file(lora, tmp_path / "lora.safetensors")
    options = {"device": "cpu", "transformer": tmp_path / "wan.gguf"}
    plain = load_pipeline(str(folder), **options)
    adapted = load_pipeline(str(folder), lora=[str(tmp_path / "lora.safetensors")], **options)
    merged = {**state, "blocks.1.cross_attn.o.weight": state["blocks.1.cross_attn.o.weight"]
              + lora[f"{name}.lora_B.weight"] @ lora[f"{name}.lora_A.weight"]}  # fmt: skip
    save_file({k: v.contiguous().clone() for k, v in merged.items()}, tmp_path / "merged.safetensors")
    whole = latents_of(load_checkpoint(folder, transformer=tmp_path / "merged.safetensors"))
    assert (latents_of(adapted) - whole).norm() / whole.norm() < 0.05
    assert (latents_of(plain) - whole).norm() / whole.norm() > 0.05


@pytest.mark.parametrize("kind", ["int8", "blocks"])
def test_other_kinds_of_quantization_are_refused(folder, state, tmp_path, kind):
    """Read as weights, they would be noise."""
    name = "blocks.0.ffn.0.weight"
    written = {key: tensor.clone() for key, tensor in state.items()}
    if kind == "int8":
        written[name] = (100 * state[name]).round().to(torch.int8)
    else:
        written[name] = state[name].to(torch.float8_e4m3fn)
        written[name.replace("weight", "weight_scale")] = torch.ones(len(state[name]), 4)
    save_file({key: tensor.contiguous() for key, tensor in written.items()}, tmp_path / "w.safetensors")
    says = "holds integers, which are not supported" if kind == "int8" else "in a way that is not supported"
    with pytest.raises(UserError, match=f"{name} .*{says}"):
        load_checkpoint(folder, transformer=tmp_path / "w.safetensors")


@torch.no_grad()
def test_the_scale_of_fp8_is_not_rounded():
    weight, scale = torch.full((2, 2), 3.0).to(torch.float8_e4m3fn), torch.tensor(1 / 3)
    layer = Fp8Linear(2, 2, False, scale)
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    assert torch.equal(layer(torch.ones(1, 2, dtype=torch.bfloat16)), torch.full((1, 2), 2.0).bfloat16())


def test_a_plan_counts_the_file(tmp_path):
    clip, model = ClipShape(81, 704, 1280), "linyq/kiwi-edit-5b-instruct-only-diffusers"
    with (tmp_path / "small.gguf").open("wb") as file:
        file.truncate(3_000_000_000)  # as large as in 4 bits, but empty
    assert is_quantized_file(tmp_path / "small.gguf")
    plain, small = (
        plan_edit(clip, model, EditPlanOptions(transformer=given))
        for given in (None, tmp_path / "small.gguf")
    )
    assert plain.weights["transformer"] > 9e9
    assert 3.0e9 < small.weights["transformer"] < 3.2e9
    assert plain.device_bytes - small.device_bytes > 6e9
    assert plain.host_bytes - small.host_bytes > 6e9


def test_mistakes_are_one_line(folder, state, companions, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_clip(tmp_path / "clip.mp4", random_clip(5, 64, 64), 12)
    file = tmp_path / "wan.gguf"
    write_gguf(file, state, "Q8_0")
    (tmp_path / "cut.gguf").write_bytes(file.read_bytes()[:5000])
    (tmp_path / "text.gguf").write_text("no weights")
    (tmp_path / "weights.bin").write_text("no weights")
    partial = {name: tensor for name, tensor in state.items() if not name.startswith("blocks.1.ffn")}
    write_gguf(tmp_path / "partial.gguf", partial, "Q8_0")
    save_file({k: v.contiguous().clone() for k, v in state.items()}, tmp_path / "wan.safetensors")
    mistakes = [
        ("cut.gguf: not a complete GGUF file", ("--model", folder, "--transformer", "cut.gguf")),
        ("text.gguf: not a complete GGUF file", ("--model", folder, "--transformer", "text.gguf")),
        ("give a .safetensors or .gguf file", ("--model", folder, "--transformer", "weights.bin")),
        ("nowhere.gguf: no such file", ("--model", folder, "--transformer", "nowhere.gguf")),
        ("keys do not fit transformer: missing blocks.1.ffn", ("--model", folder, "--transformer",
                                                               "partial.gguf")),
        ("needs a folder in diffusers' format", ("--model", "wan.safetensors", "--transformer", file)),
        ("is quantized already", ("--model", folder, "--transformer", file, "--quantize", "fp8")),
        ("is for RVEDiT, Wan2.2-TI2V-5B and Kiwi-Edit", ("--model", "lucy", "--transformer", file)),
    ]  # fmt: skip
    for expected, words in mistakes:
        given = ["edit", "clip.mp4", INSTRUCTION, "--device", "cpu", *map(str, words)]
        result = CliRunner().invoke(app, given)
        assert result.exit_code != 0
        assert expected in str(result.exception), (expected, result.exception, result.output)
        assert "\n" not in str(result.exception)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs the package gguf: pip install 'rvedit\[gguf\]'"):
        load_checkpoint(folder, transformer=file)


def test_the_command_edits_with_a_small_file(folder, state, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_clip(tmp_path / "clip.mp4", random_clip(5, 64, 64), 12)
    write_gguf(tmp_path / "wan.gguf", state, "Q4_0")
    words = ["edit", "clip.mp4", INSTRUCTION, "--model", str(folder), "--transformer", "wan.gguf"]
    result = CliRunner().invoke(app, [*words, "--device", "cpu", "--steps", "2"])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "clip_edited.mp4").is_file()
    assert np.prod((tmp_path / "clip_edited.mp4").stat().st_size) > 500
