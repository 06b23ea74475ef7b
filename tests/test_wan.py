"""Wan2.2-TI2V-5B as a start: every layout gives the same model, and a fresh one is Wan's own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import foreign
import pytest
import torch
from accelerate import init_empty_weights
from conftest import edit, random_clip
from diffusers import AutoencoderKLWan
from numpy.testing import assert_allclose
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from rvedit.editing.config import EditConfig
from rvedit.io.errors import UserError
from rvedit.io.frames import to_model_range
from rvedit.models.autoencoder import decode, encode
from rvedit.models.presets import WAN22_5B_TRANSFORMER
from rvedit.models.presets_5b import WAN21_VAE, WAN22_VAE
from rvedit.models.routing import TokenGroups
from rvedit.models.token_groups import encode_tokens
from rvedit.models.transformer import RoutedWanTransformer3DModel
from rvedit.pipelines.checkpoints import find, load_checkpoint
from rvedit.pipelines.checkpoints.find import WAN as WAN_IDS
from rvedit.pipelines.checkpoints.find import base_wan
from rvedit.pipelines.checkpoints.wan import original_transformer, original_vae
from rvedit.training.recipe import load_recipe
from rvedit.training.run import train

INSTRUCTION = "make the fish orange"


@torch.no_grad()
def test_a_fresh_model_is_wan_itself(companions):
    """X_e and the source's tokens are zero: shown the text alone, the transformer computes what Wan does."""
    pipeline = load_checkpoint(companions[0])
    clip = random_clip(5, 64, 64)
    source = encode(pipeline.vae, to_model_range(clip)[None])
    given = encode_tokens(
        pipeline, source, [pipeline.edit_token_encoder.frame_processor(clip)], [INSTRUCTION]
    )
    assert given.edit_tokens is not None
    assert given.text_tokens is not None
    assert given.edit_tokens.abs().max() == 0
    assert given.source_tokens.abs().max() == 0
    ours = pipeline.transformer
    assert ours.config.routing_depth == len(ours.blocks) // 2
    assert torch.equal(ours.visual_embedder.weight, ours.patch_embedding.weight)
    wan = foreign.make_wan_transformer()
    states = torch.randn(1, 6, 32, generator=torch.Generator().manual_seed(0))
    noisy, time = torch.randn(source.shape, generator=torch.Generator().manual_seed(1)), torch.tensor([500.0])
    ours.register_to_config(routing_depth=0)
    tokens = ours.condition_embedder.text_embedder(states)
    shown = TokenGroups(text_tokens=tokens, source_tokens=given.source_tokens)
    assert_close(
        ours(noisy, time, shown).sample, wan(noisy, time, states, return_dict=False)[0], rtol=0, atol=1e-5
    )


def assert_same_weights(first, second):
    for name in ("transformer", "connector", "mllm", "text_encoder", "vae"):
        ours, other = (getattr(pipeline, name).state_dict() for pipeline in (first, second))
        assert ours.keys() == other.keys()
        assert all(torch.equal(ours[key], other[key]) for key in ours), name


def test_all_layouts_give_the_same_model(companions, tmp_path):
    """The diffusers folder, one file with Wan's names, one with a user interface's prefix, Wan's shards."""
    folder = load_checkpoint(companions[0])
    state = foreign.to_original_transformer(foreign.make_wan_transformer().state_dict())
    save_file(state, tmp_path / "wan2.2_ti2v_5B.safetensors")
    save_file({f"model.diffusion_model.{k}": v for k, v in state.items()}, tmp_path / "prefixed.safetensors")
    shards = tmp_path / "Wan2.2-TI2V-5B"
    shards.mkdir()
    (shards / "config.json").write_text(json.dumps({"_class_name": "WanModel", "dim": 128}))
    names = sorted(state)
    places = {name: f"part-{number % 2}.safetensors" for number, name in enumerate(names)}
    for place in set(places.values()):
        save_file({name: state[name] for name in names if places[name] == place}, shards / place)
    index = shards / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    for path in (tmp_path / "wan2.2_ti2v_5B.safetensors", tmp_path / "prefixed.safetensors", shards):
        assert_same_weights(folder, load_checkpoint(path))


def test_the_published_names_are_all_known():
    """At the real size, on the meta device: every name of Wan's transformer and VAE finds its place."""
    with init_empty_weights():
        wan = RoutedWanTransformer3DModel(**WAN22_5B_TRANSFORMER)
        vae = AutoencoderKLWan(**WAN22_VAE)
    embedders = ("source_embedder", "visual_embedder")
    released = {key: tensor for key, tensor in wan.state_dict().items() if not key.startswith(embedders)}
    ours = original_transformer(foreign.to_original_transformer(released), torch.float32, Path("wan"))
    assert {k: v.shape for k, v in ours.state_dict().items()} == {
        k: v.shape for k, v in wan.state_dict().items()
    }
    config = {
        "dim": 160, "z_dim": 48, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_scales": [],
        "temperal_downsample": [False, True, True], "latents_mean": [0.0] * 48, "latents_std": [1.0] * 48,
    }  # fmt: skip
    original = foreign.to_original_vae(vae.state_dict(), num_res_blocks=2)
    loaded = original_vae(config, original, Path("vae"))
    assert {k: v.shape for k, v in loaded.state_dict().items()} == {
        k: v.shape for k, v in vae.state_dict().items()
    }
    assert {key: loaded.config[key] for key in WAN22_VAE} == WAN22_VAE


@torch.no_grad()
def test_the_vae_of_the_14b_is_read():
    """Its own key names, in small, and its size on the meta device."""
    torch.manual_seed(2)
    sizes = {"base_dim": 4, "z_dim": 4, "latents_mean": foreign.MEAN, "latents_std": foreign.STD}
    vae = AutoencoderKLWan(**{**WAN21_VAE, **sizes}).eval()
    config = {
        "dim": 4, "z_dim": 4, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_scales": [],
        "temperal_downsample": [False, True, True], "latents_mean": foreign.MEAN, "latents_std": foreign.STD,
    }  # fmt: skip
    loaded = original_vae(config, foreign.to_original_vae21(vae.state_dict()), Path("vae"))
    clip = to_model_range(random_clip(5, 32, 32))[None]
    assert torch.equal(encode(loaded, clip), encode(vae, clip))
    latents = encode(vae, clip)
    assert latents.shape == (1, 4, 2, 4, 4)
    assert torch.equal(decode(loaded, latents), decode(vae, latents))
    assert {key: AutoencoderKLWan().config[key] for key in WAN21_VAE} == WAN21_VAE


def test_the_14b_edits(tiny_tokenizer, tmp_path, monkeypatch):
    """Wan2.1 in small: another VAE, 1/8 the side, and latents of which it tells the backbone."""
    foreign.save_companions(tmp_path, tiny_tokenizer)
    sizes = {"base_dim": 4, "z_dim": 16, "latents_mean": [0.0] * 16, "latents_std": [1.0] * 16}
    AutoencoderKLWan(**{**WAN21_VAE, **sizes}).save_pretrained(tmp_path / "wan" / "vae")
    shutil.rmtree(tmp_path / "wan" / "transformer")
    foreign.make_wan_transformer(channels=16).save_pretrained(tmp_path / "wan" / "transformer")
    monkeypatch.setenv("RVEDIT_WAN", str(tmp_path / "wan"))
    monkeypatch.setenv("RVEDIT_MLLM", str(tmp_path / "qwen"))
    pipeline = load_checkpoint(tmp_path / "wan")
    assert pipeline.grid == 16
    clip = random_clip(5, 256, 256)
    edited = edit(pipeline, clip, INSTRUCTION, EditConfig(2))
    assert edited.shape == clip.shape
    state = foreign.to_original_transformer(foreign.make_wan_transformer(channels=16).state_dict())
    save_file(state, tmp_path / "wan2.1.safetensors")
    other = load_checkpoint(tmp_path / "wan2.1.safetensors")
    assert_same_weights(pipeline, other)
    # Matrix products round by where weights lie in memory, which here is a mapped file: a level at most.
    assert_allclose(edit(other, clip, INSTRUCTION, EditConfig(2)).astype(int), edited, rtol=0, atol=1)


def test_the_backbone_of_a_hub_id_has_the_latents(monkeypatch):
    monkeypatch.delenv("RVEDIT_WAN", raising=False)
    asked = []
    monkeypatch.setattr(find, "download", lambda name, *rest, **patterns: asked.append(name))
    for given in ((48,), (16,), ()):
        base_wan(*given)
    assert asked == [WAN_IDS[48], WAN_IDS[16], WAN_IDS[48]]
    assert "14B" in WAN_IDS[16]


def test_an_edit_from_a_fresh_start_runs(companions):
    clip = random_clip(5, 256, 256)
    edited = edit(load_checkpoint(companions[0]), clip, INSTRUCTION, EditConfig(2))
    assert edited.shape == clip.shape


def test_weights_that_are_none_of_wan_are_refused(companions, tmp_path):
    save_file({"layer.weight": torch.ones(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"other\.safetensors: not the weights of a Wan transformer"):
        load_checkpoint(tmp_path / "other.safetensors")
    (tmp_path / "weights.pth").write_bytes(b"pickle")
    with pytest.raises(UserError, match=r"weights\.pth: not a safetensors file"):
        load_checkpoint(tmp_path / "weights.pth")
    model = foreign.make_wan_transformer(channels=16)
    save_file(foreign.to_original_transformer(model.state_dict()), tmp_path / "wan2.1.safetensors")
    with pytest.raises(UserError, match=r"latents with 16 channels, but those of the VAE in .* have 4"):
        load_checkpoint(tmp_path / "wan2.1.safetensors")
    config = companions[0] / "transformer" / "config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps({**values, "in_channels": 36}))
    with pytest.raises(UserError, match=r"with 36 input and 4 output channels: give Wan2\.2-TI2V-5B or Wan2"):
        load_checkpoint(companions[0])


@pytest.mark.parametrize("kind", ["wan", "kiwi"])
def test_training_goes_on_from_them(companions, tiny_tokenizer, tmp_path, kind):
    """One step with routing and alignment; Kiwi-Edit's lacks a text encoder, which Wan gives."""
    start = companions[0] if kind == "wan" else foreign.save_kiwi(tmp_path / "kiwi", tiny_tokenizer)
    recipe = tmp_path / "more.yaml"
    recipe.write_text(
        f"model: {{preset: nano, init_from: {start}, routing_depth: 1}}\n"
        "data: {height: 64, width: 64, num_frames: 5, workers: 0}\nsteps: 1\nbatch_size: 1\n"
        "alignment: {weight: 0.1}\n"
    )
    list(train(load_recipe(recipe), tmp_path / "runs", "cpu"))
    trained = load_checkpoint(tmp_path / "runs" / "more" / "model")
    assert trained.transformer.config.routing_depth == 1
    assert trained.transformer.config.rounds_timesteps == (kind == "kiwi")
    assert trained.text_encoder is not None
    if kind == "kiwi":  # all blocks read X_e alone: there is no text encoder to freeze
        alone = load_recipe(
            recipe, (), ["name=alone", "model.routing_depth=2", "model.frozen=[text_encoder]"]
        )
        list(train(alone, tmp_path / "runs", "cpu"))
        assert load_checkpoint(tmp_path / "runs" / "alone" / "model").text_encoder is None
    before = load_file(start / "transformer" / "diffusion_pytorch_model.safetensors")
    after = trained.transformer.state_dict()
    assert any(not torch.equal(after[key], tensor) for key, tensor in before.items())
