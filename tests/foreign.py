"""Checkpoints of other projects' layouts, of two layers and random weights, and what they should compute.

`reference_*` is straight-line code written from the description of Kiwi-Edit's checkpoints, on the libraries'
own models; nothing of ours is called.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from conftest import make_mllm, make_text_encoder
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanTransformer3DModel
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen2_5_VLConfig
from transformers import Qwen2_5_VLForConditionalGeneration as Qwen

CHANNELS, WIDTH, LLM_WIDTH = 4, 128, 64
VIDEO_QUERIES, IMAGE_QUERIES = 7, 5
REFERENCE_QUERIES = 9
MAX_OBJECT_TOKEN = 20
"""Most tokens of a reference image to the multimodal LLM."""
MEAN, STD = [0.1, -0.2, 0.3, 0.0], [0.5, 0.8, 1.2, 0.7]
SYSTEM = (
    "You will be given an image and instruction. Please describe the content of the image in detail based on "
    "instruction in your own words."
)


def make_wan_transformer(channels: int = CHANNELS) -> WanTransformer3DModel:
    """One head of 128, as the weights do not tell the size of a head; weights that are not trivial."""
    torch.manual_seed(1)
    model = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=1, attention_head_dim=128, in_channels=channels,
        out_channels=channels, text_dim=32, freq_dim=32, ffn_dim=64, num_layers=2, rope_max_seq_len=64,
    ).eval()  # fmt: skip
    torch.nn.init.normal_(model.proj_out.weight, std=0.2)
    return model


def make_wan_vae() -> AutoencoderKLWan:
    """Wan2.2's VAE in small: four levels, 1/16 the side."""
    torch.manual_seed(2)
    return AutoencoderKLWan(
        base_dim=4, decoder_base_dim=8, z_dim=CHANNELS, dim_mult=[1, 2, 2, 2], num_res_blocks=1,
        temperal_downsample=[False, True, True], is_residual=True, in_channels=12, out_channels=12,
        patch_size=2, scale_factor_temporal=4, scale_factor_spatial=16, latents_mean=MEAN, latents_std=STD,
    ).eval()  # fmt: skip


def make_qwen(tokenizer: PreTrainedTokenizerFast) -> Qwen:
    """With patches of 14 pixels and two ticks a second, as the 3B has them."""
    torch.manual_seed(3)
    config = make_mllm(tokenizer).config.to_dict()
    config["vision_config"] |= {"patch_size": 14, "window_size": 112, "tokens_per_second": 2}
    return Qwen(Qwen2_5_VLConfig.from_dict(config)).eval()


def to_original_vae(state: dict[str, torch.Tensor], num_res_blocks: int = 1) -> dict[str, torch.Tensor]:
    """Diffusers' names -> Wan's own, by this table and no other."""
    renamed = {}
    residual = {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3", "conv2": "residual.6"}
    residual["conv_shortcut"] = "shortcut"
    for name, tensor in state.items():
        parts = name.split(".")
        if parts[0] in ("quant_conv", "post_quant_conv"):
            parts[0] = "conv1" if parts[0] == "quant_conv" else "conv2"
        elif parts[1] in ("conv_in", "conv_out", "norm_out"):
            parts[1] = {"conv_in": "conv1", "norm_out": "head.0", "conv_out": "head.2"}[parts[1]]
        elif parts[1] == "mid_block":
            place = "middle.1" if parts[2] == "attentions" else f"middle.{2 * int(parts[3])}"
            rest = [residual.get(parts[4], parts[4]), *parts[5:]]
            parts = [parts[0], place, *rest]
        else:
            kind = "downsamples" if parts[1] == "down_blocks" else "upsamples"
            # The resampler comes after the residual blocks.
            layers = num_res_blocks if kind == "downsamples" else num_res_blocks + 1
            if parts[3] == "resnets":
                parts = [parts[0], kind, parts[2], kind, parts[4], residual[parts[5]], *parts[6:]]
            else:
                parts = [parts[0], kind, parts[2], kind, str(layers), *parts[4:]]
        renamed[".".join(parts)] = tensor.clone()
    return renamed


def to_original_vae21(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same for Wan2.1's VAE, whose blocks are one list: three residual blocks a level in the decoder."""
    renamed = {}
    residual = {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3", "conv2": "residual.6"}
    residual["conv_shortcut"] = "shortcut"
    for name, tensor in state.items():
        parts = name.split(".")
        if parts[0] in ("quant_conv", "post_quant_conv"):
            parts[0] = "conv1" if parts[0] == "quant_conv" else "conv2"
        elif parts[1] in ("conv_in", "conv_out", "norm_out"):
            parts[1] = {"conv_in": "conv1", "norm_out": "head.0", "conv_out": "head.2"}[parts[1]]
        elif parts[1] == "mid_block":
            place = "middle.1" if parts[2] == "attentions" else f"middle.{2 * int(parts[3])}"
            parts = [parts[0], place, residual.get(parts[4], parts[4]), *parts[5:]]
        elif parts[1] == "down_blocks":
            parts = [parts[0], "downsamples", parts[2], residual.get(parts[3], parts[3]), *parts[4:]]
        elif parts[3] == "resnets":
            number = 4 * int(parts[2]) + int(parts[4])
            parts = [parts[0], "upsamples", str(number), residual[parts[5]], *parts[6:]]
        else:
            parts = [parts[0], "upsamples", str(4 * int(parts[2]) + 3), *parts[5:]]
        renamed[".".join(parts)] = tensor.clone()
    return renamed


def to_original_transformer(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Diffusers' names -> Wan's own."""
    table = [
        (r"^condition_embedder\.time_embedder\.linear_1", "time_embedding.0"),
        (r"^condition_embedder\.time_embedder\.linear_2", "time_embedding.2"),
        (r"^condition_embedder\.text_embedder\.linear_1", "text_embedding.0"),
        (r"^condition_embedder\.text_embedder\.linear_2", "text_embedding.2"),
        (r"^condition_embedder\.time_proj", "time_projection.1"),
        (r"^scale_shift_table", "head.modulation"),
        (r"^proj_out", "head.head"),
        (r"\.scale_shift_table", ".modulation"),
        (r"\.norm2\.", ".norm3."),
        (r"\.attn1\.", ".self_attn."),
        (r"\.attn2\.", ".cross_attn."),
        (r"\.to_out\.0\.", ".o."),
        (r"\.to_([qkv])\.", r".\1."),
        (r"\.ffn\.net\.0\.proj\.", ".ffn.0."),
        (r"\.ffn\.net\.2\.", ".ffn.2."),
    ]
    renamed = {}
    for name, tensor in state.items():
        for old, new in table:
            name = re.sub(old, new, name)
        renamed[name] = tensor.clone()
    return renamed


def save(folder: Path, state: dict[str, torch.Tensor], config: dict[str, Any] | None = None) -> None:
    """Weights as `diffusion_pytorch_model.safetensors`, and a config beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {k: v.detach().contiguous() for k, v in state.items()}, folder / "diffusion_pytorch_model.safetensors"
    )
    (folder / "config.json").write_text(json.dumps(config or {}))


def kiwi_parts() -> dict[str, torch.Tensor]:
    """Queries, connectors and the source's embedder."""
    generator = torch.Generator().manual_seed(4)

    def draw(*shape: int, scale: float = 0.2) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * scale

    parts = {"image_queries": draw(IMAGE_QUERIES, LLM_WIDTH), "video_queries": draw(VIDEO_QUERIES, LLM_WIDTH)}
    parts["ref_queries"] = draw(REFERENCE_QUERIES, LLM_WIDTH)
    for name in ("connector", "ref_connector"):
        parts |= {f"{name}.0.weight": draw(WIDTH, LLM_WIDTH), f"{name}.0.bias": draw(WIDTH)}
        parts |= {f"{name}.2.weight": draw(WIDTH, WIDTH), f"{name}.2.bias": draw(WIDTH)}
    for name in ("source", "reference"):
        parts |= {f"{name}.weight": draw(WIDTH, CHANNELS, 1, 2, 2), f"{name}.bias": draw(WIDTH)}
    return parts


def save_kiwi(folder: Path, tokenizer: PreTrainedTokenizerFast, reference_first: bool | None = None) -> Path:
    """A checkpoint in the layout of kiwi-edit-5b-instruct-only-diffusers, or -instruct-reference-."""
    parts = kiwi_parts()
    make_wan_transformer().save_pretrained(folder / "transformer")
    vae = {
        "_class_name": "VAE", "z_dim": CHANNELS, "dim": 4, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1,
        "attn_scales": [], "temperal_downsample": [False, True, True], "dropout": 0.0, "latents_mean": MEAN,
        "latents_std": STD,
    }  # fmt: skip
    save(folder / "vae", to_original_vae(make_wan_vae().state_dict()), vae)
    for name, part in (("source_embedder", "source"), ("ref_embedder", "reference")):
        embedder = {f"patch_embedding.{kind}": parts[f"{part}.{kind}"] for kind in ("weight", "bias")}
        config = {"_class_name": "ConditionalEmbedder", "ref_pad_first": bool(reference_first)}
        save(folder / name, embedder, config)
    if reference_first is None:
        (folder / "ref_embedder" / "diffusion_pytorch_model.safetensors").unlink()
    encoder = {name: tensor for name, tensor in parts.items() if "_" in name or name.startswith("connector")}
    make_qwen(tokenizer).save_pretrained(folder / "mllm_encoder")
    (folder / "processor").mkdir()
    (folder / "mllm_encoder" / "config.json").rename(folder / "processor" / "qwen_config.json")
    config = {"_class_name": "MLLMEncoder", "max_frames": 16, "max_pixels_per_frame": 262_144}
    config["max_object_token"] = MAX_OBJECT_TOKEN
    save(folder / "mllm_encoder", encoder, config)
    tokenizer.save_pretrained(folder / "processor")
    FlowMatchEulerDiscreteScheduler(shift=5.0).save_pretrained(folder / "scheduler")
    index = {"_class_name": ["pipeline_kiwi_edit", "KiwiEditPipeline"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def save_companions(folder: Path, tokenizer: PreTrainedTokenizerFast) -> tuple[Path, Path]:
    """Wan2.2-TI2V-5B-Diffusers and Qwen2.5-VL, in small."""
    wan, qwen = folder / "wan", folder / "qwen"
    make_wan_transformer().save_pretrained(wan / "transformer")
    make_wan_vae().save_pretrained(wan / "vae")
    torch.manual_seed(5)
    make_text_encoder(tokenizer).save_pretrained(wan / "text_encoder")
    tokenizer.save_pretrained(wan / "tokenizer")
    FlowMatchEulerDiscreteScheduler(shift=5.0).save_pretrained(wan / "scheduler")
    (wan / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline"}))
    make_qwen(tokenizer).save_pretrained(qwen)
    tokenizer.save_pretrained(qwen)
    return wan, qwen


def smart_resize(height: int, width: int, grid: int, least: int, most: int) -> tuple[int, int]:
    """Qwen's rule: multiples of the grid, the area between two bounds."""
    rows, columns = (max(grid, round(side / grid) * grid) for side in (height, width))
    if rows * columns > most:
        by = math.sqrt(height * width / most)
        rows, columns = (math.floor(side / by / grid) * grid for side in (height, width))
    elif rows * columns < least:
        by = math.sqrt(least / (height * width))
        rows, columns = (math.ceil(side * by / grid) * grid for side in (height, width))
    return rows, columns


def reference_patches(frames: np.ndarray) -> tuple[torch.Tensor, list[int]]:
    """Frames as Qwen's processor cuts them, patch by patch."""
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    pixels = (frames / 255.0 - mean) / std
    if len(pixels) % 2:
        pixels = np.concatenate([pixels, pixels[-1:]])
    patches = []
    pairs, rows, columns = len(pixels) // 2, pixels.shape[1] // 14, pixels.shape[2] // 14
    for pair in range(pairs):
        for row in range(0, rows, 2):
            for column in range(0, columns, 2):
                for y in (row, row + 1):
                    for x in (column, column + 1):
                        cut = pixels[2 * pair : 2 * pair + 2, 14 * y : 14 * y + 14, 14 * x : 14 * x + 14]
                        patches.append(cut.transpose(3, 0, 1, 2).reshape(-1))
    return torch.tensor(np.array(patches), dtype=torch.float32), [pairs, rows, columns]


def reference_positions(visions: list[tuple[int, list[int]]], length: int) -> torch.Tensor:
    """Time, row and column of every token, two ticks a pair of frames; text goes on after the largest.

    `visions` are the first token and the grid of the clip and of a reference image.
    """
    positions: list[tuple[int, ...]] = []
    following, starts = 0, dict(visions)
    while len(positions) < length:
        grid = starts.get(len(positions))
        if grid is None:
            positions.append((following,) * 3)
        else:
            places = itertools.product(range(grid[0]), range(grid[1] // 2), range(grid[2] // 2))
            positions += [(following + 2 * t, following + y, following + x) for t, y, x in places]
        following = 1 + max(max(place) for place in positions)
    return torch.tensor(positions).T


def reference_frames(clip: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The frames that the multimodal LLM is shown, and those that the VAE encodes."""
    height, width = clip.shape[1:3]
    images = [Image.fromarray(frame) for frame in clip]
    scale = math.sqrt(720 * 1280 / (height * width))
    if scale < 1:
        height, width = int(height * scale) // 16 * 16, int(width * scale) // 16 * 16
        images = [image.resize((width, height), Image.Resampling.LANCZOS) for image in images]
    shown = np.stack([np.asarray(image) for image in images])
    height, width = math.ceil(height / 32) * 32, math.ceil(width / 32) * 32
    images = [image.resize((width, height), Image.Resampling.LANCZOS) for image in images]
    while len(images) % 4 != 1:
        images.append(images[-1])
    return shown, np.stack([np.asarray(image) for image in images])


@torch.no_grad()
def reference_context(
    folder: Path, clip: np.ndarray, instruction: str, picture: np.ndarray | None = None
) -> torch.Tensor:
    """The context of every block, from the frames and the picture that the multimodal LLM is shown."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "processor")
    config = Qwen2_5_VLConfig.from_json_file(folder / "processor" / "qwen_config.json")
    qwen = Qwen.from_pretrained(folder / "mllm_encoder", config=config).eval()
    weights = load_file(folder / "mllm_encoder" / "diffusion_pytorch_model.safetensors")
    height, width = clip.shape[1:3]
    if len(clip) == 1 and picture is None:
        queries, pad = weights["image_queries"], "<|image_pad|>"
        rows, columns = smart_resize(height, width, 28, 4 * 28**2, 16384 * 28**2)
        seen = np.stack([np.asarray(Image.fromarray(frame).resize((columns, rows))) for frame in clip])
    else:
        queries, pad = weights["video_queries"], "<|video_pad|>"
        if len(clip) > 16:
            clip = clip[torch.linspace(0, len(clip) - 1, 16).round().long().numpy()]
        rows, columns = smart_resize(height, width, 56, 4 * 56**2, 262_144)
        coarse = np.stack([np.asarray(Image.fromarray(frame).resize((columns, rows))) for frame in clip])
        rows, columns = smart_resize(rows, columns, 28, 100_352, 262_144)
        fine = F.interpolate(
            torch.tensor(coarse).permute(0, 3, 1, 2).float(), (rows, columns), mode="bicubic", antialias=True
        )
        seen = fine.round().clamp(0, 255).permute(0, 2, 3, 1).numpy()
    clips = [(pad, *reference_patches(seen))]
    middle = instruction
    if picture is not None:
        queries = weights["ref_queries"]
        rows, columns = smart_resize(*picture.shape[:2], 28, 4 * 28**2, MAX_OBJECT_TOKEN * 28**2)
        small = np.asarray(Image.fromarray(picture).resize((columns, rows)))
        clips.append(("<|image_pad|>", *reference_patches(np.stack([small, small]))))
        count = math.prod(clips[1][2]) // 4
        middle += " Use the reference input from last frame."
        middle += f"<|vision_start|>{'<|image_pad|>' * count}<|vision_end|>"
    count = math.prod(clips[0][2]) // 4
    text = (
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n"
        f"<|vision_start|>{pad * count}<|vision_end|>{middle}"
        f"{'<|object_ref_start|>' * len(queries)}<|im_end|>\n"
    )
    ids = tokenizer(text, return_tensors="pt").input_ids
    embeddings = qwen.get_input_embeddings()(ids)[0]
    token = tokenizer.convert_tokens_to_ids
    embeddings[ids[0] == token("<|object_ref_start|>")] = queries
    visions = []
    for pad_token, patches, grid in clips:
        features = qwen.model.visual(patches, grid_thw=torch.tensor([grid])).pooler_output
        embeddings[ids[0] == token(pad_token)] = features
        visions.append(((ids[0] == token(pad_token)).tolist().index(True), grid))
    positions = reference_positions(visions, ids.shape[1])
    states = qwen.model.language_model(
        inputs_embeds=embeddings[None], position_ids=positions[:, None]
    ).last_hidden_state

    def connect(states: torch.Tensor, name: str) -> torch.Tensor:
        inner = F.gelu(states @ weights[f"{name}.0.weight"].T + weights[f"{name}.0.bias"], approximate="tanh")
        return inner @ weights[f"{name}.2.weight"].T + weights[f"{name}.2.bias"]

    context = connect(states[:, -len(queries) :], "connector")
    if picture is None:
        return context
    start = (ids[0] == token("<|vision_start|>")).nonzero()[-1] + 1
    stop = (ids[0] == token("<|vision_end|>")).nonzero()[-1]
    return torch.cat([connect(states[:, start:stop], "ref_connector"), context], dim=1)


@torch.no_grad()
def reference_velocity(
    folder: Path,
    latents: torch.Tensor,
    source: torch.Tensor,
    context: torch.Tensor,
    sigma: float,
    picture: torch.Tensor | None = None,
) -> torch.Tensor:
    """One forward pass."""
    wan = WanTransformer3DModel.from_pretrained(folder / "transformer").eval()
    embedder = load_file(folder / "source_embedder" / "diffusion_pytorch_model.safetensors")
    added = F.conv3d(
        source, embedder["patch_embedding.weight"], embedder["patch_embedding.bias"], stride=(1, 2, 2)
    )
    volume = wan.patch_embedding(latents) + added * sigma
    frames, rows, columns = volume.shape[2:]
    tokens = volume.flatten(2).transpose(1, 2)
    frequencies = 10_000 ** (-torch.arange(16, dtype=torch.float64) / 16)
    timestep = torch.tensor(1000 * sigma).bfloat16().double()
    angles = timestep * frequencies
    time = torch.cat([angles.cos(), angles.sin()])[None].float()
    time = wan.condition_embedder.time_embedder(time)
    modulation = wan.condition_embedder.time_proj(F.silu(time)).unflatten(1, (6, WIDTH))
    rope = wan.rope(latents)
    num_video, is_first = tokens.shape[1], False
    if picture is not None:
        of_picture = load_file(folder / "ref_embedder" / "diffusion_pytorch_model.safetensors")
        added = F.conv3d(
            picture,
            of_picture["patch_embedding.weight"],
            of_picture["patch_embedding.bias"],
            stride=(1, 2, 2),
        )
        added = added.flatten(2).transpose(1, 2)
        is_first = json.loads((folder / "ref_embedder" / "config.json").read_text())["ref_pad_first"]
        tokens = torch.cat([added, tokens] if is_first else [tokens, added], dim=1)
        rope = wan.rope(torch.cat([latents, latents[:, :, :1]], dim=2))
    for block in wan.blocks:
        tokens = block(tokens, context, modulation, rope)
    tokens = tokens[:, -num_video:] if is_first else tokens[:, :num_video]
    shift, scale = (wan.scale_shift_table + time[:, None]).chunk(2, dim=1)
    tokens = wan.proj_out(wan.norm_out(tokens) * (1 + scale) + shift)
    tokens = tokens.view(1, frames, rows, columns, 2, 2, CHANNELS)
    return tokens.permute(0, 6, 1, 2, 4, 3, 5).reshape(latents.shape)


@torch.no_grad()
def reference_edit(
    folder: Path,
    clip: np.ndarray,
    instruction: str,
    steps: int,
    seed: int,
    sigma_min: float = 0.003 / 1.002,
    picture: np.ndarray | None = None,
) -> torch.Tensor:
    """The latents of a whole edit."""
    vae = make_wan_vae()  # the weights that were saved, in the library's own layout
    mean, std = (torch.tensor(x)[:, None, None, None] for x in (MEAN, STD))
    shown, encoded = reference_frames(clip)

    def encode(frames: np.ndarray) -> torch.Tensor:
        pixels = torch.tensor(frames).permute(3, 0, 1, 2)[None] / 127.5 - 1
        return (vae.encode(pixels).latent_dist.mean - mean) / std

    source = encode(encoded)
    context = reference_context(folder, shown, instruction, picture)
    of_picture = None
    if picture is not None:
        size = (encoded.shape[2], encoded.shape[1])
        padded = ImageOps.pad(Image.fromarray(picture), size, color="white", centering=(0.5, 0.5))
        of_picture = encode(np.asarray(padded)[None])
    sigmas = torch.linspace(1, sigma_min, steps + 1, dtype=torch.float64)[:-1]
    sigmas = (5 * sigmas / (1 + 4 * sigmas)).tolist()
    latents = torch.randn(source.shape, generator=torch.Generator("cpu").manual_seed(seed))
    for sigma, following in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
        velocity = reference_velocity(folder, latents, source, context, sigma, of_picture)
        latents = latents + velocity * (following - sigma)
    return latents
