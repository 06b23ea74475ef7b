"""LoRA weights in every layout that is published, against a merge by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import edit, make_pipeline, random_clip
from diffusers import WanTransformer3DModel, WanVACETransformer3DModel
from foreign import make_wan_transformer
from peft import LoraConfig
from PIL import Image
from processes import rvedit
from safetensors.torch import load_file, save_file
from test_editors import SIZES
from torch import Tensor
from torch.testing import assert_close

from rvedit.io.errors import UserError
from rvedit.io.video import write_clip
from rvedit.pipelines.adapters import add_lora_weights, add_loras
from rvedit.pipelines.loading import load_pipeline
from rvedit.pipelines.lora_files import Lora, find_lora

LAYERS = {
    "blocks.0.self_attn.q": "blocks.0.attn1.to_q",
    "blocks.1.self_attn.o": "blocks.1.attn1.to_out.0",
    "blocks.1.cross_attn.k": "blocks.1.attn2.to_k",
    "blocks.0.ffn.0": "blocks.0.ffn.net.0.proj",
    "blocks.1.ffn.2": "blocks.1.ffn.net.2",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.head": "proj_out",
}
"""Wan's names of layers, and diffusers'."""

MODELS: dict[str, Callable[[Any], Any]] = {
    "rvedit": lambda tokenizer: make_pipeline(tokenizer).transformer,
    "wan": lambda tokenizer: make_wan_transformer(),
    "lucy": lambda tokenizer: WanTransformer3DModel(**SIZES, in_channels=32),
    "vace": lambda tokenizer: WanVACETransformer3DModel(
        **SIZES, in_channels=16, vace_layers=[0], vace_in_channels=96
    ),
}

ALPHA = 4.0
"""With rank 2, a scale of 2."""


def kohya(wan: str, ours: str, down: Tensor, up: Tensor) -> dict[str, Tensor]:
    name = f"lora_unet_{wan.replace('.', '_')}"
    alpha = torch.tensor(ALPHA)
    return {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": alpha}


def kohya_of_diffusers(wan: str, ours: str, down: Tensor, up: Tensor) -> dict[str, Tensor]:
    return kohya(ours.replace(".", "_"), ours, down, up)


def comfyui(wan: str, ours: str, down: Tensor, up: Tensor) -> dict[str, Tensor]:
    name = f"diffusion_model.{wan}"
    alpha = torch.tensor(ALPHA)
    return {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": alpha}


def pairs(template: str, scale: float = 2.0) -> Callable[..., dict[str, Tensor]]:
    """Layouts without alpha, whose product counts as it is."""

    def names(wan: str, ours: str, down: Tensor, up: Tensor) -> dict[str, Tensor]:
        keys = (template.format(wan=wan, ours=ours, half=half) for half in "AB")
        return dict(zip(keys, (down, up * scale), strict=True))

    return names


STYLES: dict[str, Callable[..., dict[str, Tensor]]] = {
    "kohya": kohya,
    "kohya, of diffusers' layers": kohya_of_diffusers,
    "ComfyUI": comfyui,
    "Wan's own": pairs("{wan}.lora_{half}.weight"),
    "DiffSynth": pairs("pipe.dit.{wan}.lora_{half}.default.weight"),
    "diffusers": pairs("transformer.{ours}.lora_{half}.weight"),
    "peft": pairs("base_model.model.{ours}.lora_{half}.weight", scale=1.0),
}


def random_lora(transformer: Any, rank: int = 2, seed: int = 0) -> dict[str, tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    lora = {}
    for name in LAYERS.values():
        rows, columns = transformer.get_submodule(name).weight.shape
        lora[name] = (
            torch.randn(rank, columns, generator=generator) / 4,
            torch.randn(rows, rank, generator=generator) / 4,
        )
    return lora


def save(path: Path, style: str, lora: dict[str, tuple[Tensor, Tensor]]) -> Path:
    wan_names = {ours: wan for wan, ours in LAYERS.items()}
    weights: dict[str, Tensor] = {}
    for ours, (down, up) in lora.items():
        weights |= STYLES[style](wan_names[ours], ours, down, up)
    if style == "peft":
        config = LoraConfig(r=2, lora_alpha=int(ALPHA), target_modules=[]).to_dict()
        path = path.with_name("adapter_model.safetensors")
        (path.parent / "adapter_config.json").write_text(
            json.dumps({k: v for k, v in config.items() if isinstance(v, int | str | dict)})
        )
    save_file({key: tensor.contiguous() for key, tensor in weights.items()}, path)
    return path


def outputs(transformer: Any) -> list[Tensor]:
    """What each layer computes."""
    layers = [transformer.get_submodule(name) for name in LAYERS.values()]
    return [layer(torch.linspace(-1, 1, layer.in_features)[None]) for layer in layers]


def merged(transformer: Any, *loras: tuple[dict[str, tuple[Tensor, Tensor]], float]) -> list[Tensor]:
    """The same with W + factor * BA in place of W."""
    for lora, factor in loras:
        for name, (down, up) in lora.items():
            transformer.get_submodule(name).weight.data += factor * up @ down
    return outputs(transformer)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("style", STYLES)
@torch.no_grad()
def test_every_layout_is_a_merge_by_hand(tiny_tokenizer: Any, tmp_path: Path, style: str, model: str) -> None:
    torch.manual_seed(0)
    transformer = MODELS[model](tiny_tokenizer)
    lora = random_lora(transformer)
    reference = MODELS[model](tiny_tokenizer)
    reference.load_state_dict(transformer.state_dict())
    file = save(tmp_path / "lora.safetensors", style, lora)
    add_loras(transformer, [Lora(file, 0.5)])
    for computed, expected in zip(outputs(transformer), merged(reference, (lora, 0.5 * 2)), strict=True):
        assert_close(computed, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_two_adapters_add_up_with_their_weights(tmp_path: Path) -> None:
    transformer, reference = make_wan_transformer(), make_wan_transformer()
    first, second = random_lora(transformer), random_lora(transformer, rank=3, seed=1)
    files = [save(tmp_path / "1.safetensors", "Wan's own", first)]
    files.append(save(tmp_path / "2.safetensors", "DiffSynth", second))
    add_loras(transformer, [Lora(files[0], 0.7), Lora(files[1], -0.2)])
    expected = merged(reference, (first, 0.7 * 2), (second, -0.2 * 2))
    for ours, by_hand in zip(outputs(transformer), expected, strict=True):
        assert_close(ours, by_hand, rtol=0, atol=1e-5)
    transformer.set_adapters(["lora_1", "lora_2"], [0.0, 0.0])
    for ours, plain in zip(outputs(transformer), outputs(make_wan_transformer()), strict=True):
        assert_close(ours, plain, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_models_own_adapter_stays(tmp_path: Path) -> None:
    """As Ditto's."""
    transformer, reference = make_wan_transformer(), make_wan_transformer()
    own, other = random_lora(transformer), random_lora(transformer, seed=1)
    add_lora_weights(transformer, save(tmp_path / "own.safetensors", "Wan's own", own))
    add_loras(transformer, [Lora(save(tmp_path / "other.safetensors", "Wan's own", other), 0.3)])
    for ours, by_hand in zip(outputs(transformer), merged(reference, (own, 2), (other, 0.6)), strict=True):
        assert_close(ours, by_hand, rtol=0, atol=1e-5)


@torch.no_grad()
def test_whole_differences_are_added(tmp_path: Path) -> None:
    """As distilled models are published: matrices, and differences of norms, biases and convolutions."""
    transformer, plain = make_wan_transformer(), make_wan_transformer()
    ours = {
        "blocks.0.norm3.diff": "blocks.0.norm2.weight",
        "blocks.0.self_attn.norm_k.diff": "blocks.0.attn1.norm_k.weight",
        "blocks.0.modulation.diff": "blocks.0.scale_shift_table",
        "blocks.1.cross_attn.k.diff_b": "blocks.1.attn2.to_k.bias",
        "patch_embedding.diff": "patch_embedding.weight",
        "patch_embedding.diff_b": "patch_embedding.bias",
        "head.head.diff": "proj_out.weight",
    }
    parameters = dict(plain.named_parameters())
    transformer_parameters = dict(transformer.named_parameters())
    differences = {name: torch.randn_like(parameters[our]) for name, our in ours.items()}
    lora = {"blocks.1.attn2.to_k": random_lora(plain)["blocks.1.attn2.to_k"]}
    file = save(tmp_path / "lora.safetensors", "ComfyUI", lora)
    save_file(load_file(file) | {f"diffusion_model.{k}": v for k, v in differences.items()}, file)
    add_loras(transformer, [Lora(file, 0.5)])
    for name, our in ours.items():
        assert_close(transformer_parameters[our].data, parameters[our] + 0.5 * differences[name])


def test_peft_and_diffusers_configs_scale(tmp_path: Path) -> None:
    """What diffusers' trainers save has alpha, its patterns and rank-stabilized scaling in the metadata."""
    layers = ["blocks.0.attn1.to_q", "blocks.1.attn2.to_k"]
    trained = make_wan_transformer()
    config = LoraConfig(
        r=4, lora_alpha=6, use_rslora=True, target_modules=layers, alpha_pattern={"attn2.to_k": 1},
        init_lora_weights=False,
    )  # fmt: skip
    trained.add_adapter(config, "default")
    trained.save_lora_adapter(tmp_path)
    loaded = make_wan_transformer()
    assert add_lora_weights(loaded, find_lora(str(tmp_path)).file)
    for name in layers:
        ours, theirs = (model.get_submodule(name) for model in (loaded, trained))
        probe = torch.linspace(-1, 1, ours.in_features)[None]
        assert_close(ours(probe), theirs(probe), rtol=0, atol=1e-5)
        assert not torch.allclose(theirs(probe), make_wan_transformer().get_submodule(name)(probe))


def test_a_pipeline_is_loaded_with_adapters(tiny_tokenizer: Any, tmp_path: Path) -> None:
    pipe = make_pipeline(tiny_tokenizer)
    pipe.save_pretrained(tmp_path / "model")
    lora = random_lora(pipe.transformer)
    file = save(tmp_path / "lora.safetensors", "kohya", lora)
    clip = random_clip(5)
    plain = edit(pipe, clip, "make it red", detail=0)
    merged(pipe.transformer, (lora, 0.5 * 2))
    expected = edit(pipe, clip, "make it red", detail=0)
    loaded = load_pipeline(str(tmp_path / "model"), lora=[f"{file}:0.5"])
    edited = edit(loaded, clip, "make it red", detail=0)
    assert np.abs(edited.astype(int) - expected).max() <= 1
    assert np.abs(edited.astype(int) - plain).max() > 1
    quantized = load_pipeline(str(tmp_path / "model"), lora=[f"{file}:0.5"], quantization="fp8")
    assert quantized.transformer.blocks[0].attn1.to_q.weight.dtype == torch.float8_e4m3fn
    assert edit(quantized, clip, "make it red", detail=0).shape == clip.shape


def test_names_and_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lora = random_lora(make_wan_transformer())
    file = save(tmp_path / "fish:2.safetensors", "DiffSynth", lora)
    assert find_lora(str(file)) == (file, 1.0)
    assert find_lora(f"{file}:0.8") == (file, 0.8)
    assert find_lora(f"{file}:-1") == (file, -1.0)
    folder = tmp_path / "trained"
    folder.mkdir()
    saved = save(folder / "any", "peft", lora)
    assert find_lora(f"{folder}:2") == (saved, 2.0)
    asked = []

    def snapshot_download(name: str, allow_patterns: list[str]) -> str:
        """The hub's client here is a stand-in that keeps what it was asked."""
        asked.append((name, allow_patterns))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert find_lora("owner/name:0.5") == (saved, 0.5)
    (folder / "sub").mkdir()
    of_four_steps = file.rename(folder / "sub" / "4steps.safetensors")
    assert find_lora("owner/name/sub/4steps.safetensors:0.5") == (of_four_steps, 0.5)
    assert [name for name, _ in asked] == ["owner/name"] * 2
    assert asked[0][1][:2] == ["pytorch_lora_weights.safetensors", "adapter_model.safetensors"]
    assert asked[1][1] == ["sub/4steps.safetensors", "adapter_config.json"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nothing.safetensors", "`lora` nothing.safetensors: no such file: give a file, or a hub id"),
        ("a/b/c/d.bin", "`lora` a/b/c/d.bin: no such file"),
        ("nothing.safetensors:strong", "nothing.safetensors:strong: no such file"),
        ("owner/name:nan", "the weight is not a finite number"),
        (".", "holds no pytorch_lora_weights.safetensors or adapter_model.safetensors: name a file in it"),
    ],
)
def test_wrong_names_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        load_pipeline("nobody/nothing", lora=[text])  # before the model is looked for
    assert said in str(caught.value)


MATRICES = {"lora_A": torch.zeros(2, 128), "lora_B": torch.zeros(128, 2)}


@pytest.mark.parametrize(
    ("foreign", "named"),
    [
        ({"blocks.7.self_attn.q.lora_A.weight": torch.zeros(2, 128)}, "blocks.7.self_attn.q.lora_A.weight"),
        ({"lora_unet_blocks_0_cross_attn_k_img.alpha": torch.tensor(1.0)}, "cross_attn_k_img.alpha"),
        ({"blocks.0.self_attn.k.lora_A.weight": torch.zeros(2, 64)}, "blocks.0.self_attn.k.lora_A.weight"),
        ({"blocks.0.self_attn.k.lora_A.weight": torch.zeros(2, 128)}, "blocks.0.self_attn.k.lora_A.weight"),
        ({"blocks.0.self_attn.k.alpha": torch.tensor(1.0)}, "blocks.0.self_attn.k.alpha"),
        ({"blocks.0.self_attn.q.lora_magnitude_vector": torch.zeros(128)}, "lora_magnitude_vector"),
        ({"blocks.0.self_attn.k.lokr_w1": torch.zeros(2, 2)}, "blocks.0.self_attn.k.lokr_w1"),
        ({"blocks.0.self_attn.k.diff_b": torch.zeros(5)}, "blocks.0.self_attn.k.diff_b"),
        ({"lora_te_text_model_q.alpha": torch.tensor(1.0)}, "lora_te_text_model_q.alpha"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(tmp_path: Path, foreign: dict[str, Tensor], named: str) -> None:
    transformer = make_wan_transformer()
    weights = {f"blocks.0.self_attn.q.{half}.weight": tensor for half, tensor in MATRICES.items()}
    file = tmp_path / "lora.safetensors"
    save_file({**weights, **foreign}, file)
    with pytest.raises(UserError, match="does not fit the transformer") as caught:
        add_loras(transformer, [Lora(file)])
    assert named in str(caught.value)
    save_file(weights, file)
    add_loras(transformer, [Lora(file)])


def test_the_command_adds_them(tmp_path: Path) -> None:
    lora = random_lora(load_pipeline("nano", "cpu").transformer)
    file = save(tmp_path / "lora.safetensors", "kohya", lora)
    write_clip(tmp_path / "in.mkv", random_clip(1, 32, 48), 12)
    frames = {}
    for weight in ("0", "1"):
        words = ["in.mkv", "make it red", "-o", f"{weight}.png", "--steps", "1", "--detail", "off", "--json"]
        done = rvedit("edit", *words, "--lora", f"{file.name}:{weight}", cwd=tmp_path, check=0)
        assert json.loads(done.stdout)["lora"] == [f"lora.safetensors:{weight}"]
        assert "peft" not in done.stderr
        frames[weight] = np.asarray(Image.open(tmp_path / f"{weight}.png"))
    rvedit("edit", *words[:2], "-o", "plain.png", *words[4:], cwd=tmp_path, check=0)
    assert np.array_equal(frames["0"], np.asarray(Image.open(tmp_path / "plain.png")))
    assert not np.array_equal(frames["0"], frames["1"])
