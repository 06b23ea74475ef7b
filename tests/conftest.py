"""Small models that the tests share, and shapes checked at run time.

The import hook makes every annotated function of the model, the objectives and the windows check its shapes
with beartype, so each test is also a test of the annotations. It must run before rvedit is imported.
"""

# ruff: noqa: E402 (the hook comes before what it hooks)
from __future__ import annotations

import os

# Before torch is imported: test processes that each take all cores slow each other many times over.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Read while the libraries are imported: no test asks the hub, and commands are forked from a process that has
# imported them (see processes.py), in which they must be as quiet as `rvedit_cli.main` makes them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["DIFFUSERS_VERBOSITY"] = os.environ["TRANSFORMERS_VERBOSITY"] = "error"

from jaxtyping import install_import_hook

install_import_hook(["rvedit.models", "rvedit.losses", "rvedit.editing.windows"], "beartype.beartype")

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler
from hypothesis import settings
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    UMT5Config,
    UMT5EncoderModel,
)

from rvedit.editing.config import EditConfig
from rvedit.editing.long_video import edit_video
from rvedit.models.edit_tokens import EditTokenConnector, EditTokenEncoder
from rvedit.models.nano_tokenizer import train_tokenizer
from rvedit.models.transformer import RoutedWanTransformer3DModel
from rvedit.pipelines.pipeline_rvedit import RVEDiTPipeline
from rvedit.training.recipe import Recipe, load_recipe
from rvedit.training.run import train

# A slow or loaded machine is no failure; nothing is written beside the tests.
settings.register_profile("rvedit", deadline=None, database=None, max_examples=60)
settings.load_profile("rvedit")

# A shell's background jobs and `nohup` ignore these; the commands that tests interrupt would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

WIDTH = 64
LLM_WIDTH = 64
TEXT_WIDTH = 32
CHANNELS = 8

CORPUS = ("replace the dog with a corgi", "make the fish orange", "add a red car", "remove the ball")


def make_transformer(**changes: Any) -> RoutedWanTransformer3DModel:
    """Four blocks of width 64 with fresh weights; the caller seeds."""
    config: dict[str, Any] = {
        "patch_size": (1, 1, 1),
        "num_attention_heads": 4,
        "attention_head_dim": 16,
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "text_dim": TEXT_WIDTH,
        "freq_dim": 32,
        "ffn_dim": 96,
        "num_layers": 4,
        "rope_max_seq_len": 64,
        "routing_depth": 2,
        "source_position": True,
    }
    return RoutedWanTransformer3DModel(**{**config, **changes}).eval()


def make_vae() -> AutoencoderKLWan:
    """A residual Wan VAE of 1/16 the side and 1/4 the frames, with statistics that are not trivial."""
    return AutoencoderKLWan(
        base_dim=8,
        decoder_base_dim=8,
        z_dim=CHANNELS,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        is_residual=True,
        in_channels=48,
        out_channels=48,
        patch_size=4,
        scale_factor_temporal=4,
        scale_factor_spatial=16,
        latents_mean=[0.02 * channel for channel in range(CHANNELS)],
        latents_std=[0.1 + 0.05 * channel for channel in range(CHANNELS)],
    ).eval()


def edit(pipe: Any, video: Any, prompt: str, config: EditConfig | None = None, **changes: Any) -> np.ndarray:
    """Edit a clip by the driver; return its frames (t, h, w, 3)."""
    return np.stack(list(edit_video(pipe, video, prompt, config, **changes)))


def edit_latents(pipe: RVEDiTPipeline, clip: np.ndarray, prompt: str, seed: int = 0, **arguments: Any) -> Any:
    """Edit a window by the pipeline; return its latents."""
    generator = torch.Generator().manual_seed(seed)
    size = dict(zip(("height", "width"), clip.shape[1:3], strict=True))
    return pipe(clip, prompt, generator=generator, output_type="latent", **size, **arguments).frames


def make_mllm(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLForConditionalGeneration:
    """Qwen2.5-VL with two layers; one vision block attends in windows, the other to the whole frame."""
    special = tokenizer.convert_tokens_to_ids
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": LLM_WIDTH,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]},
            "bos_token_id": None,
            "eos_token_id": special("<|im_end|>"),
            "pad_token_id": tokenizer.pad_token_id,
            "initializer_range": 0.2,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "patch_size": 8,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 32,
            "out_hidden_size": LLM_WIDTH,
            "fullatt_block_indexes": [1],
            "tokens_per_second": 1,
            "initializer_range": 0.2,
        },
        image_token_id=special("<|image_pad|>"),
        video_token_id=special("<|video_pad|>"),
        vision_start_token_id=special("<|vision_start|>"),
        vision_end_token_id=special("<|vision_end|>"),
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def make_connector(**changes: Any) -> EditTokenConnector:
    """Six queries, four frames of at most 32 x 32."""
    config: dict[str, Any] = {
        "num_queries": 6,
        "llm_width": LLM_WIDTH,
        "width": WIDTH,
        "max_frames": 4,
        "max_pixels": 32 * 32,
        "system_prompt": "edit the dog",
        "zero_init": False,
    }
    return EditTokenConnector(**{**config, **changes}).eval()


def make_text_encoder(tokenizer: PreTrainedTokenizerFast) -> UMT5EncoderModel:
    """One layer of umT5's encoder."""
    config = UMT5Config(
        vocab_size=len(tokenizer),
        d_model=TEXT_WIDTH,
        d_kv=8,
        d_ff=64,
        num_layers=1,
        num_heads=4,
        dropout_rate=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
        is_encoder_decoder=False,
        use_cache=False,
    )
    return UMT5EncoderModel(config).eval()


def make_pipeline(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> RVEDiTPipeline:
    """The whole editor with fresh weights: windows of 9 frames every 4, frames of about 32 x 32."""
    torch.manual_seed(seed)
    pipeline = RVEDiTPipeline(
        transformer=make_transformer(),
        connector=make_connector(),
        mllm=make_mllm(tokenizer),
        text_encoder=make_text_encoder(tokenizer),
        vae=make_vae(),
        tokenizer=tokenizer,
        mllm_tokenizer=tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        max_text_length=12,
        window_frames=9,
        window_stride=4,
        min_area=32 * 32,
        max_area=48 * 48,
        default_steps=2,
        default_guidance=1.0,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def random_clip(num_frames: int, height: int = 32, width: int = 32, seed: int = 0) -> np.ndarray:
    """Blocky noise that moves: survives resizing, and no two frames are equal."""
    rng = np.random.default_rng([seed, num_frames, height, width])
    coarse = rng.integers(0, 256, (num_frames, -(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)[:, :height, :width]


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(CORPUS, vocabulary=300)


@pytest.fixture(scope="session")
def tiny_pipeline(tiny_tokenizer: PreTrainedTokenizerFast) -> RVEDiTPipeline:
    return make_pipeline(tiny_tokenizer)


@pytest.fixture
def tiny_encoder(tiny_tokenizer: PreTrainedTokenizerFast) -> EditTokenEncoder:
    torch.manual_seed(0)
    mllm, connector = make_mllm(tiny_tokenizer), make_connector()
    torch.nn.init.normal_(connector.queries)
    return EditTokenEncoder(mllm, tiny_tokenizer, connector)


@pytest.fixture
def count_calls() -> Any:
    """`count_calls(module)` gives a list that grows by one at every forward call of the module."""
    handles = []

    def watch(module: torch.nn.Module) -> list[Any]:
        calls: list[Any] = []
        handles.append(module.register_forward_hook(lambda _, args, output: calls.append((args, output))))
        return calls

    yield watch
    for handle in handles:
        handle.remove()


# Small training runs.

SMALL = [
    "data.height=32",
    "data.width=32",
    "data.num_frames=5",
    "data.workers=0",
    "batch_size=2",
    "precision=fp32",
]


@pytest.fixture(scope="session")
def vae_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a tiny VAE."""
    runs = tmp_path_factory.mktemp("runs")
    recipe = runs / "tiny_vae.yaml"
    recipe.write_text("task: vae\nmodel: {preset: nano}\nsteps: 2\n")
    list(train(load_recipe(recipe, assignments=SMALL), runs, "cpu"))
    return runs / "tiny_vae"


@pytest.fixture(scope="session")
def tiny_model(tiny_pipeline: RVEDiTPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny editor in a folder, from which trainings start in a moment."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_pipeline.save_pretrained(folder)
    return folder


@pytest.fixture
def recipe_of(tmp_path: Path, tiny_model: Path) -> Callable[..., tuple[Path, Recipe]]:
    """`recipe_of(name, *assignments)` gives the path of a recipe for the tiny editor, and the recipe."""

    def build(name: str, *assignments: str) -> tuple[Path, Recipe]:
        path = tmp_path / f"{name}.yaml"
        path.write_text(
            f"model: {{preset: nano, routing_depth: 2, init_from: {tiny_model}}}\n"
            "optimizer: {name: adamw, learning_rate: 1.0e-3}\nsteps: 6\ncheckpoint_every: 2\n"
        )
        return path, load_recipe(path, assignments=[*SMALL, *assignments])

    return build


def losses_of(runs: Path, name: str) -> list[float]:
    """The losses that a run logged."""
    lines = (runs / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


WatchCalls = Callable[[torch.nn.Module], list[Any]]


@pytest.fixture
def companions(
    tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, Path]:
    """Wan2.2's and Qwen2.5-VL's folders in small, where loaders look for what a checkpoint lacks."""
    import foreign  # which builds on this file

    wan, qwen = foreign.save_companions(tmp_path, tiny_tokenizer)
    monkeypatch.setenv("RVEDIT_WAN", str(wan))
    monkeypatch.setenv("RVEDIT_MLLM", str(qwen))
    return wan, qwen
