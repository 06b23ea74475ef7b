"""Kiwi-Edit's checkpoints in our pipeline, against straight-line code written from their description."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import foreign
import numpy as np
import pytest
import torch
from conftest import edit, edit_latents, random_clip
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from rvedit.editing.config import EditConfig
from rvedit.editing.long_video import edit_videos_together
from rvedit.io.errors import UserError
from rvedit.io.frames import to_model_range
from rvedit.models.autoencoder import decode, encode
from rvedit.models.token_groups import encode_tokens
from rvedit.pipelines.checkpoints import load_checkpoint, reads_reference_images
from rvedit.pipelines.checkpoints.outline import outline
from rvedit.pipelines.pipeline_rvedit import RVEDiTPipeline

INSTRUCTION = "make the fish orange"
CLOSE = {"rtol": 0, "atol": 1e-4}


@pytest.fixture(scope="module")
def folder(tiny_tokenizer, tmp_path_factory) -> Path:
    return foreign.save_kiwi(tmp_path_factory.mktemp("kiwi") / "kiwi-edit", tiny_tokenizer)


@pytest.fixture(scope="module")
def pipeline(folder) -> RVEDiTPipeline:
    return load_checkpoint(folder)


@pytest.mark.parametrize(
    ("num_frames", "height", "width"), [(5, 256, 256), (21, 256, 256), (17, 256, 384), (1, 256, 256)]
)
@torch.no_grad()
def test_the_context_is_theirs(folder, pipeline, num_frames, height, width):
    clip = random_clip(num_frames, height, width)
    encoder = pipeline.edit_token_encoder
    ours = encoder([encoder.frame_processor(clip)], [INSTRUCTION])
    theirs = foreign.reference_context(folder, clip, INSTRUCTION)
    assert ours.shape[1] == (foreign.IMAGE_QUERIES if num_frames == 1 else foreign.VIDEO_QUERIES)
    assert_close(ours, theirs, **CLOSE)
    assert theirs.std() > 0.1, "a context of nearly nothing would be close to anything"


@torch.no_grad()
def test_a_forward_pass_is_theirs(folder, pipeline):
    clip = random_clip(5, 256, 256)
    source = encode(pipeline.vae, to_model_range(clip)[None])
    noisy = torch.randn(source.shape, generator=torch.Generator().manual_seed(1))
    context = foreign.reference_context(folder, clip, INSTRUCTION)
    seen = pipeline.edit_token_encoder.frame_processor(clip)
    given = encode_tokens(pipeline, source, [seen], [INSTRUCTION])
    for sigma in (1.0, 0.4, 0.9803):
        ours = pipeline.transformer(noisy, torch.tensor([1000 * sigma]), given).sample
        theirs = foreign.reference_velocity(folder, noisy, source, context, sigma)
        assert_close(ours, theirs, **CLOSE)
        assert theirs.std() > 0.1


SHAPES = [(5, 256, 256), (1, 256, 256), (21, 256, 256), (5, 270, 360), (5, 180, 400), (8, 256, 272),
          (1, 300, 420), (1, 1080, 1920)]  # fmt: skip
"""Frames, height and width: also long, off the grid, not of 4k+1 frames, stills, and above the largest."""


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_an_edit_of_five_steps_is_theirs(folder, pipeline, shape):
    clip = random_clip(*shape)
    generator = torch.Generator().manual_seed(3)
    latents = pipeline(
        clip, INSTRUCTION, generator=generator, num_inference_steps=5, output_type="latent"
    ).frames
    assert_close(latents, foreign.reference_edit(folder, clip, INSTRUCTION, 5, 3), **CLOSE)


@pytest.fixture(scope="module", params=[False, True], ids=["picture last", "picture first"])
def reference_folder(tiny_tokenizer, tmp_path_factory, request) -> Path:
    return foreign.save_kiwi(tmp_path_factory.mktemp("kiwi") / "kiwi", tiny_tokenizer, request.param)


WITH_PICTURES = [((5, 256, 256), (300, 420)), ((21, 256, 256), (60, 80)), ((1, 256, 256), (256, 256)),
                 ((8, 180, 400), (500, 90))]  # fmt: skip
"""Shapes of a clip and of a reference image; one of them is within the most tokens."""


@pytest.mark.parametrize(("shape", "size"), WITH_PICTURES)
@torch.no_grad()
def test_an_edit_with_a_reference_image_is_theirs(reference_folder, shape, size):
    pipeline = load_checkpoint(reference_folder)
    clip, picture = random_clip(*shape), random_clip(1, *size)[0]
    edits = []
    for given in (picture, None):
        generator = torch.Generator().manual_seed(3)
        options = {"num_inference_steps": 5, "output_type": "latent", "reference_image": given}
        latents = pipeline(clip, INSTRUCTION, generator=generator, **options).frames
        theirs = foreign.reference_edit(reference_folder, clip, INSTRUCTION, 5, 3, picture=given)
        assert_close(latents, theirs, **CLOSE)
        edits.append(latents)
    assert (edits[0] - edits[1]).abs().mean() > 0.05, "the picture must change the edit"


@torch.no_grad()
def test_the_context_of_a_reference_image_is_theirs(reference_folder):
    encoder = load_checkpoint(reference_folder).edit_token_encoder
    clip, picture = random_clip(21, 256, 256), random_clip(1, 100, 300)[0]
    processor = encoder.frame_processor
    seen = processor.reference_image(picture)
    ours = encoder([processor(clip, has_reference=True)], [INSTRUCTION], [seen])
    theirs = foreign.reference_context(reference_folder, clip, INSTRUCTION, picture)
    num_tokens = (seen.shape[0] // 28) * (seen.shape[1] // 28)
    assert ours.shape[1] == num_tokens + foreign.REFERENCE_QUERIES
    assert_close(ours, theirs, **CLOSE)


@torch.no_grad()
def test_clips_together_have_a_reference_image_each(reference_folder):
    pipeline = load_checkpoint(reference_folder)
    clips = [random_clip(5, 256, 256, seed=seed) for seed in (0, 1)]
    pictures = [random_clip(1, 90, 90, seed=seed)[0] for seed in (2, 3)]
    noise = torch.randn(1, foreign.CHANNELS, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    options = {"num_inference_steps": 2, "output_type": "latent"}
    texts = [INSTRUCTION, "remove it, please"]
    together = pipeline(
        clips, texts, latents=noise.repeat(2, 1, 1, 1, 1), reference_image=pictures, **options
    ).frames
    for clip, text, picture, edited in zip(clips, texts, pictures, together, strict=True):
        alone = pipeline(clip, text, latents=noise, reference_image=picture, **options).frames[0]
        assert_close(edited, alone, **CLOSE)


def test_a_reference_image_is_refused_where_it_has_no_effect(pipeline):
    clip, picture = random_clip(5, 256, 256), random_clip(1, 64, 64)[0]
    with pytest.raises(ValueError, match="`reference_image`: this model reads none"):
        pipeline(clip, INSTRUCTION, reference_image=picture)
    with pytest.raises(ValueError, match="`reference_image` has 2 pictures for 1 clips: give one for each"):
        pipeline(clip, INSTRUCTION, reference_image=[picture, picture])


@torch.no_grad()
def test_latents_are_decoded_as_theirs(pipeline):
    latents = torch.randn(1, foreign.CHANNELS, 2, 6, 8, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(x)[:, None, None, None] for x in (foreign.MEAN, foreign.STD))
    assert_close(
        decode(pipeline.vae, latents), foreign.make_wan_vae().decode(latents * std + mean).sample, **CLOSE
    )


@pytest.mark.parametrize("together", [False, True])
def test_the_driver_gives_the_frames_that_they_do(pipeline, monkeypatch, together):
    """To the multimodal LLM before they are rounded up and padded, to the VAE after that."""
    seen = []

    def stop(*given):
        seen.extend(given)
        raise InterruptedError

    monkeypatch.setattr(pipeline, "_encode_tokens", stop)
    clip = random_clip(8, 180, 400)
    run = partial(edit_videos_together, pipeline, [clip], [INSTRUCTION])
    with pytest.raises(InterruptedError):
        run() if together else edit(pipeline, clip, INSTRUCTION)
    source, frames, *_ = seen
    shown, encoded = foreign.reference_frames(clip)
    assert np.array_equal(frames[0], shown)
    with torch.no_grad():
        expected = encode(foreign.make_wan_vae(), to_model_range(encoded)[None])
    assert_close(source, expected, **CLOSE)


def test_it_edits_in_kiwi_edits_sizes(pipeline):
    """At most 720 x 1280 pixels, in multiples of 16, and from there up to the grid."""
    whole = outline("linyq/kiwi-edit-5b-instruct-only-diffusers")
    assert whole.config.round_up
    assert pipeline.config.round_up
    sizes = {(720, 1280): (736, 1280), (480, 848): (480, 864), (360, 640): (384, 640),
             (1080, 1920): (736, 1280), (1920, 1080): (1280, 736), (704, 1280): (704, 1280),
             (1000, 1000): (960, 960)}  # fmt: skip
    assert {size: whole.model_size(*size) for size in sizes} == sizes


def test_every_block_reads_editing_tokens_alone(pipeline):
    assert pipeline.transformer.config.routing_depth == len(pipeline.transformer.blocks)
    assert pipeline.text_encoder is None
    assert torch.equal(
        pipeline.transformer.visual_embedder.weight, pipeline.transformer.patch_embedding.weight
    )


def test_it_is_saved_and_read_as_one_of_ours(pipeline, tmp_path):
    clip = random_clip(5, 256, 256)
    pipeline.save_pretrained(tmp_path / "ours")
    again = load_checkpoint(tmp_path / "ours")
    settings = EditConfig(2)
    assert np.array_equal(
        edit(again, clip, INSTRUCTION, settings), edit(pipeline, clip, INSTRUCTION, settings)
    )


def trained_file(
    path: Path, spelling: str = "connetor", adapters: bool = True, references: bool = False
) -> dict[str, torch.Tensor]:
    """What Kiwi-Edit's trainer writes, and the deltas of its adapters."""
    parts = foreign.kiwi_parts()
    transformer = foreign.to_original_transformer(foreign.make_wan_transformer().state_dict())
    state = {f"pipe.dit.{key}": tensor for key, tensor in transformer.items()}
    for name in ("image_queries", "video_queries", "ref_queries"):
        state[f"pipe.mllm.{name}.q"] = parts[name]
    for layer in ("0.weight", "0.bias", "2.weight", "2.bias"):
        state[f"pipe.mllm.{spelling}.{layer}"] = parts[f"connector.{layer}"]
        state[f"pipe.mllm.ref_connector.{layer}"] = parts[f"ref_connector.{layer}"]
    for part in ("weight", "bias"):
        state[f"pipe.vae_condition.patch_embedding.{part}"] = parts[f"source.{part}"]
        if references:
            state[f"pipe.ref_vae_condition.patch_embedding.{part}"] = parts[f"reference.{part}"]
    deltas = {}
    if adapters:
        generator = torch.Generator().manual_seed(6)
        for layer, rows, columns in (("self_attn.q_proj", 64, 64), ("mlp.down_proj", 64, 96)):
            up, down = torch.randn(rows, 2, generator=generator), torch.randn(2, columns, generator=generator)
            name = f"pipe.mllm.model.model.language_model.layers.1.{layer}"
            state |= {f"{name}.lora_A.default.weight": down, f"{name}.lora_B.default.weight": up}
            deltas[f"model.language_model.layers.1.{layer}.weight"] = up @ down
    save_file({key: tensor.contiguous().clone() for key, tensor in state.items()}, path)
    return deltas


@pytest.mark.parametrize("spelling", ["connetor", "connector"])
def test_a_trained_file_without_adapters_is_the_published_folder(pipeline, companions, tmp_path, spelling):
    trained_file(tmp_path / "kiwi.safetensors", spelling, adapters=False)
    loaded = load_checkpoint(tmp_path / "kiwi.safetensors")
    assert loaded.text_encoder is loaded.tokenizer is None, "no block would read X_l"
    for name in ("transformer", "connector", "mllm", "vae"):
        ours, theirs = getattr(loaded, name).state_dict(), getattr(pipeline, name).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name
    assert pipeline.config.sigma_min == pytest.approx(0.003 / 1.002)
    assert loaded.config.sigma_min == 0, "the trainer's schedule has other ends than the published folders'"


@torch.no_grad()
def test_a_trained_file_with_reference_images(tiny_tokenizer, companions, tmp_path):
    """It is the published folder with the picture last, but for the end of the schedule."""
    folder = foreign.save_kiwi(tmp_path / "published", tiny_tokenizer, reference_first=False)
    trained_file(tmp_path / "kiwi.safetensors", adapters=False, references=True)
    assert reads_reference_images(tmp_path / "kiwi.safetensors")
    pipeline, clip, picture = (
        load_checkpoint(tmp_path / "kiwi.safetensors"), random_clip(5, 256, 256), random_clip(1, 90, 60)[0]
    )  # fmt: skip
    assert pipeline.connector.config.max_reference_tokens == 768
    pipeline.connector.register_to_config(max_reference_tokens=foreign.MAX_OBJECT_TOKEN)
    options = {"num_inference_steps": 5, "reference_image": picture}
    latents = edit_latents(pipeline, clip, INSTRUCTION, 3, **options)
    theirs = foreign.reference_edit(folder, clip, INSTRUCTION, 5, 3, sigma_min=0.0, picture=picture)
    assert_close(latents, theirs, **CLOSE)


@torch.no_grad()
def test_an_edit_with_a_trained_file_is_theirs(folder, companions, tmp_path):
    trained_file(tmp_path / "kiwi.safetensors", adapters=False)
    clip = random_clip(5, 256, 256)
    latents = edit_latents(
        load_checkpoint(tmp_path / "kiwi.safetensors"), clip, INSTRUCTION, 3, num_inference_steps=5
    )
    assert_close(latents, foreign.reference_edit(folder, clip, INSTRUCTION, 5, 3, sigma_min=0.0), **CLOSE)


@pytest.mark.parametrize("shape", [(1, 256, 256), (5, 256, 256)])
@torch.no_grad()
def test_a_file_of_the_first_stage_has_no_source_embedder(folder, companions, tmp_path, shape):
    """It holds the image's queries, the connector and adapters; queries for clips are drawn anew."""
    deltas = trained_file(tmp_path / "whole.safetensors")
    state = load_file(tmp_path / "whole.safetensors")
    first = ("pipe.mllm.image_queries", "pipe.mllm.connetor", "pipe.mllm.model")
    state = {key.removeprefix("pipe."): x for key, x in state.items() if key.startswith(first)}
    save_file(state, tmp_path / "first.safetensors")
    with pytest.warns(UserWarning, match=r"first\.safetensors: has no queries for clips"):
        loaded = load_checkpoint(tmp_path / "first.safetensors")
    assert loaded.connector.config.num_queries == 512
    assert 0.01 < loaded.connector.queries.std() < 0.03
    again = shutil.copytree(folder, tmp_path / "as a folder")
    for name, changes in (
        ("source_embedder", lambda key, x: torch.zeros_like(x)),
        ("mllm_encoder", lambda key, x: loaded.connector.queries if key == "video_queries" else x),
    ):
        file = again / name / "diffusion_pytorch_model.safetensors"
        save_file({key: changes(key, x).contiguous() for key, x in load_file(file).items()}, file)
    file = again / "mllm_encoder" / "model.safetensors"
    weights = load_file(file)
    for key, delta in deltas.items():
        name = key if key in weights else key.replace("model.language_model.", "model.")
        weights[name] = weights[name] + delta
    save_file(weights, file, {"format": "pt"})
    clip = random_clip(*shape)
    latents = edit_latents(loaded, clip, INSTRUCTION, 3, num_inference_steps=5)
    assert_close(latents, foreign.reference_edit(again, clip, INSTRUCTION, 5, 3, sigma_min=0.0), **CLOSE)


def test_adapters_are_merged(pipeline, companions, tmp_path):
    deltas = trained_file(tmp_path / "kiwi.safetensors")
    trained = load_checkpoint(tmp_path / "kiwi.safetensors").mllm.state_dict()
    base = pipeline.mllm.state_dict()
    assert len(deltas) == 2
    for key, tensor in base.items():
        assert_close(trained[key], tensor + deltas[key] if key in deltas else tensor, rtol=0, atol=1e-6)


def test_adapters_of_the_transformer_are_merged(pipeline, companions, tmp_path):
    """A file that holds no weights of the transformer but adapters: the base's, and their products."""
    trained_file(tmp_path / "kiwi.safetensors", adapters=False)
    state = load_file(tmp_path / "kiwi.safetensors")
    state = {key: tensor for key, tensor in state.items() if not key.startswith("pipe.dit.")}
    up, down = torch.randn(128, 2), torch.randn(2, 128)
    state["blocks.1.cross_attn.o.lora_A.default.weight"] = down
    state["blocks.1.cross_attn.o.lora_B.default.weight"] = up
    save_file(state, tmp_path / "lora.safetensors")
    trained = load_checkpoint(tmp_path / "lora.safetensors").transformer.state_dict()
    changed = "blocks.1.attn2.to_out.0.weight"
    for key, tensor in pipeline.transformer.state_dict().items():
        assert_close(trained[key], tensor + up @ down if key == changed else tensor, rtol=0, atol=1e-6)


def test_an_adapter_of_nothing_is_refused(companions, tmp_path):
    trained_file(tmp_path / "kiwi.safetensors", adapters=False)
    state = load_file(tmp_path / "kiwi.safetensors")
    state["pipe.mllm.model.layers.9.mlp.up_proj.lora_B.default.weight"] = torch.ones(96, 2)
    save_file(state, tmp_path / "half.safetensors")
    with pytest.raises(UserError, match=r"incomplete LoRA weights: .*layers\.9.* has no lora_A"):
        load_checkpoint(tmp_path / "half.safetensors")
    state["pipe.mllm.model.layers.9.mlp.up_proj.lora_A.default.weight"] = torch.ones(2, 64)
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(
        UserError, match=r"holds .*layers\.9\.mlp\.up_proj.*which the multimodal LLM does not have"
    ):
        load_checkpoint(tmp_path / "other.safetensors")


def without(path: str):
    def damage(folder: Path) -> None:
        target = folder / path
        shutil.rmtree(target) if target.is_dir() else target.unlink()

    return damage


def cut_off(folder: Path) -> None:
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def without_a_shard(folder: Path) -> None:
    part = folder / "transformer"
    index = {"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors", "c": "part-3.safetensors"}}
    (part / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    (part / "diffusion_pytorch_model.safetensors").rename(part / "part-2.safetensors")


def without_a_key(folder: Path) -> None:
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    del state["decoder.head.2.weight"]
    save_file(state, file)


def without_depth(folder: Path) -> None:
    path = folder / "transformer" / "config.json"
    config = json.loads(path.read_text())
    del config["num_layers"]
    path.write_text(json.dumps(config))


def empty_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / "processor" / name).unlink()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (
            without("source_embedder/diffusion_pytorch_model.safetensors"),
            "diffusion_pytorch_model.safetensors is mi",
        ),
        (without("processor/qwen_config.json"), "qwen_config.json is missing"),
        (without("transformer/config.json"), "config.json is missing"),
        (without("processor"), "is missing"),
        (without_depth, "do not fit transformer: num_layers"),
        (empty_tokenizer, "its tokenizer cannot be read"),
        (cut_off, "not a complete safetensors file"),
        (without_a_shard, "2 of 3 shards are missing (part-1.safetensors, part-3.safetensors)"),
        (without_a_key, "do not fit vae: "),
    ],
)
def test_a_damaged_checkpoint_is_one_line(folder, tmp_path, damage, says):
    shutil.copytree(folder, tmp_path / "damaged")
    damage(tmp_path / "damaged")
    with pytest.raises(UserError) as caught:
        load_checkpoint(tmp_path / "damaged")
    assert says in str(caught.value)
    assert "damaged" in str(caught.value)
    assert "\n" not in str(caught.value)
