"""The dry run's figures against models, operations counted on real tensors, and what is published."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_mllm, make_text_encoder, make_transformer, make_vae
from diffusers.models.attention_dispatch import attention_backend
from peft import LoraConfig, LoraModel
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedTokenizerFast

from rvedit.io.errors import UserError
from rvedit.io.records import ClipShape
from rvedit.models import flops
from rvedit.models.cross_attention import BlockContext
from rvedit.models.flops import Shape
from rvedit.training import memory
from rvedit.training.costs import EditorCosts
from rvedit.training.plan import plan_training, why_not_runnable
from rvedit.training.recipe import Recipe, load_recipe
from rvedit_cli.plan import print_plan

RECIPES = Path(__file__).parents[1] / "recipes"
NOT_FOR_TRAINING = {"data.yaml", "nano_scale.yaml", "table1.yaml"}
NAMES = sorted(path.name for path in RECIPES.glob("*.yaml") if path.name not in NOT_FOR_TRAINING)
OVERLAY = RECIPES / "nano_scale.yaml"


def paper(*assignments: str) -> Recipe:
    return load_recipe(RECIPES / "rvedit.yaml", [], assignments)


# Parameters.


def test_published_sizes() -> None:
    groups = {group.name: group.trained + group.frozen for group in memory.build_models(paper()).groups}
    assert groups["transformer"] == pytest.approx(5.00e9, rel=1e-3)
    assert groups["MLLM language tower"] + groups["MLLM vision encoder"] == 3_754_622_976  # Qwen2.5-VL-3B
    assert groups["text encoder"] == 5_680_910_336  # umT5-xxl's encoder
    assert groups["VAE"] == pytest.approx(0.7047e9, rel=1e-3)


def test_adapters_are_those_of_peft() -> None:
    models = memory.build_models(paper())
    with torch.device("meta"):
        adapted = LoraModel(models.language, LoraConfig(r=64, target_modules=list(memory.ADAPTED)), "default")
    trained = sum(p.numel() for name, p in adapted.named_parameters() if ".lora_" in name)
    assert models.adapters == trained == pytest.approx(0.12e9, rel=0.01)


def test_recipe_chooses_what_is_trained() -> None:
    def trained(*assignments: str) -> dict[str, int]:
        return {g.name: g.trained for g in memory.build_models(paper(*assignments)).groups}

    default = trained()
    assert default["MLLM language tower"] == default["MLLM vision encoder"] == default["text encoder"] == 0
    whole = trained("model.lora_rank=0", "model.frozen=[]")
    assert "MLLM adapters" not in whole
    assert min(whole[name] for name in ("MLLM language tower", "MLLM vision encoder", "text encoder")) > 0
    assert whole["VAE"] == 0
    # With L_s = L nobody reads X_v and X_l: their embedders and the text encoder stand still.
    unread = trained("model.routing_depth=30", "model.frozen=[]")
    embedders = (48 * 4 * 3072 + 3072) + (4096 * 3072 + 3072 + 3072 * 3072 + 3072)
    assert unread["transformer"] == default["transformer"] - embedders
    assert unread["text encoder"] == 0
    with pytest.raises(UserError, match="wheels"):
        trained("model.frozen=[wheels]")


# FLOPs.


@pytest.fixture
def plain_attention() -> Iterator[None]:
    """As matrix products, which are counted."""
    with attention_backend("_native_math"):
        yield


@pytest.mark.usefixtures("plain_attention")
def test_transformers_flops_are_those_counted() -> None:
    torch.manual_seed(0)
    transformer = make_transformer(num_layers=3, routing_depth=1, ffn_dim=256)
    shape = Shape(dict(transformer.config), (3, 8, 8), edit_tokens=16, text_tokens=12)
    edit = torch.randn(1, 16, 64)
    text = torch.randn(1, 12, transformer.config.text_dim)
    noisy, source = torch.randn(2, *shape.latents)

    with FlopCounterMode(display=False) as forward:
        groups = transformer.embed_tokens(edit, source, text)
        sample = transformer(noisy, torch.tensor([500.0]), groups).sample
    with FlopCounterMode(display=False) as backward:
        sample.square().mean().backward()
    step = flops.step_flops(shape, checkpointing=False)
    assert step.forward == pytest.approx(forward.get_total_flops(), rel=0.03)
    assert step.backward == pytest.approx(backward.get_total_flops(), rel=0.03)

    with FlopCounterMode(display=False) as again:
        transformer.enable_gradient_checkpointing()
        transformer.train()
        groups = transformer.embed_tokens(edit, source, text)
        transformer(noisy, torch.tensor([500.0]), groups).sample.square().mean().backward()
    total = flops.training_flops(shape, checkpointing=True)
    assert total == pytest.approx(again.get_total_flops(), rel=0.03)

    for depth in (1, 3):
        with FlopCounterMode(display=False) as reference, torch.no_grad():
            groups = transformer.embed_tokens(edit, source, text)
            transformer(noisy, torch.tensor([500.0]), groups, None, depth, stop_at_trace=True)
        expected = flops.step_flops(shape, (depth,), checkpointing=False).reference
        assert expected == pytest.approx(reference.get_total_flops(), rel=0.06)


def test_cost_model_of_the_5b() -> None:
    step = flops.step_flops(EditorCosts(paper()).shape, range(1, 31))
    assert step.forward == pytest.approx(365.9e12, rel=1e-3)
    assert step.reference / step.forward == pytest.approx(0.456, abs=1e-3)
    assert step.total == pytest.approx(1.64e15, rel=0.005)


def test_conditioners_flops_are_those_counted(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    mllm = make_mllm(tiny_tokenizer)
    mllm.set_attn_implementation("eager")
    mllm.model.visual.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as vision, torch.no_grad():
        mllm.model.visual(torch.randn(2 * 16 * 16, 384), grid_thw=torch.tensor([[2, 16, 16]]))
    assert flops.vision_flops(mllm.config.vision_config, (2, 16, 16)) == pytest.approx(
        vision.get_total_flops(), rel=0.05
    )
    with FlopCounterMode(display=False) as language, torch.no_grad():
        mllm.model.language_model(inputs_embeds=torch.randn(1, 96, 64), use_cache=False)
    assert flops.language_flops(mllm.config.text_config, 96) == pytest.approx(
        language.get_total_flops(), rel=0.02
    )
    encoder = make_text_encoder(tiny_tokenizer)
    encoder.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as text, torch.no_grad():
        encoder(torch.zeros(1, 40, dtype=torch.long))
    assert flops.text_encoder_flops(encoder.config, 40) == pytest.approx(text.get_total_flops(), rel=0.02)


@pytest.mark.parametrize("frames", [1, 5, 13])
def test_vaes_convolutions_are_those_counted(frames: int) -> None:
    vae = make_vae()
    clip = torch.randn(1, 3, frames, 64, 64)
    with (
        flops.counting_convolutions(vae) as calls,
        FlopCounterMode(display=False) as counted,
        torch.no_grad(),
    ):
        vae.encode(clip)
    assert sum(calls) == pytest.approx(counted.get_total_flops(), rel=0.03)  # attention is left out


def test_encoding_is_linear_in_the_clips_length() -> None:
    costs = EditorCosts(load_recipe(RECIPES / "rvedit.yaml", [OVERLAY], ["data.num_frames=17"]))
    clip = torch.empty(1, 3, 17, 128, 128, device="meta")
    with flops.counting_convolutions(costs.models.vae) as calls, torch.no_grad():
        costs.models.vae.encode(clip)
    assert costs.encode_flops(ClipShape(17, 128, 128)) == pytest.approx(sum(calls), rel=1e-9)


# Memory.


def weights_in_bf16(module: torch.nn.Module) -> int:
    return memory.BF16 * memory.matrices(module)


@pytest.mark.parametrize("bf16", [True, False])
@pytest.mark.parametrize(
    ("heads", "ffn", "grid", "context"), [(2, 256, (2, 4, 10), 24), (4, 96, (3, 8, 8), 200)]
)
def test_block_keeps_what_autograd_keeps(
    bf16: bool, heads: int, ffn: int, grid: tuple[int, int, int], context: int
) -> None:
    transformer = make_transformer(num_attention_heads=heads, attention_head_dim=32, ffn_dim=ffn)
    block, shape = transformer.blocks[0], Shape(dict(transformer.config), grid, 0, 0)
    kind = torch.bfloat16 if bf16 else torch.float32
    tokens, read = (
        torch.randn(1, n, shape.width, dtype=kind, requires_grad=True) for n in (shape.sequence, context)
    )
    time = torch.randn(1, 6, shape.width, requires_grad=True)
    rotary = transformer.rope(torch.randn(shape.latents))
    inputs = torch.nn.ParameterList([tokens, read, time, *(torch.nn.Parameter(r) for r in rotary)])
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        kept = memory.saved_bytes(
            lambda: block(tokens, BlockContext(read), time, rotary), torch.nn.ModuleList([block, inputs])
        )
    # fp32 tokens enter a norm as they are, and are counted already. Tables of rotation are not the block's.
    given = 0 if bf16 else 4 * tokens.numel()
    table = sum(r.nbytes for r in rotary)
    expected = memory.block_bytes(shape, context, bf16) - given + weights_in_bf16(block) * bf16
    assert expected == pytest.approx(kept, rel=0.01, abs=table)


def growth(measure: Callable[[int], int]) -> int:
    """Bytes of one more layer."""
    return measure(2) - measure(1)


@pytest.mark.parametrize("bf16", [True, False])
@pytest.mark.parametrize("rank", [0, 8])
@pytest.mark.parametrize(("tokens", "inner"), [(48, 160), (96, 64)])
def test_language_tower_keeps_what_autograd_keeps(
    tiny_tokenizer: PreTrainedTokenizerFast, bf16: bool, rank: int, tokens: int, inner: int
) -> None:
    config = make_mllm(tiny_tokenizer).config
    config.text_config.intermediate_size = inner
    copies = {}

    def measure(layers: int) -> int:
        config.text_config.num_hidden_layers = layers
        config.text_config.layer_types = ["full_attention"] * layers
        mllm = type(make_mllm(tiny_tokenizer))(config).train()
        tower = mllm.model.language_model
        if rank:
            tower.requires_grad_(False)
            LoraModel(tower, LoraConfig(r=rank, target_modules=list(memory.ADAPTED)), "default")
        copies[layers] = weights_in_bf16(tower) * bf16
        states = torch.randn(1, tokens, 64, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return memory.saved_bytes(lambda: tower(inputs_embeds=states, use_cache=False), tower)

    kept = growth(measure) - (copies[2] - copies[1])
    config.text_config.num_hidden_layers = 1
    assert memory.language_bytes(config.text_config, tokens, bf16, rank) == pytest.approx(kept, rel=0.03)


@pytest.mark.parametrize("bf16", [True, False])
@pytest.mark.parametrize("inner", [64, 160])
def test_vision_and_text_encoder_keep_what_autograd_keeps(
    tiny_tokenizer: PreTrainedTokenizerFast, bf16: bool, inner: int
) -> None:
    mllm, encoder = make_mllm(tiny_tokenizer), make_text_encoder(tiny_tokenizer)
    vision, text = mllm.config.vision_config, encoder.config
    vision.intermediate_size = text.d_ff = inner
    vision.fullatt_block_indexes = [0, 1]
    copies = {}

    def measure_vision(layers: int) -> int:
        vision.depth = layers
        module = type(mllm.model.visual)(vision).train()
        copies[layers] = weights_in_bf16(module) * bf16
        patches = torch.randn(64, 384)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return memory.saved_bytes(lambda: module(patches, grid_thw=torch.tensor([[1, 8, 8]])), module)

    def measure_text(layers: int) -> int:
        text.num_layers = layers
        module = type(encoder)(text).train()
        copies[layers] = weights_in_bf16(module) * bf16
        ids = torch.zeros(1, 40, dtype=torch.long)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return memory.saved_bytes(lambda: module(ids, attention_mask=torch.ones_like(ids)), module)

    kept = growth(measure_vision) - (copies[2] - copies[1])
    vision.depth = 1
    assert memory.vision_bytes(vision, 64, bf16) == pytest.approx(kept, rel=0.03)
    kept = growth(measure_text) - (copies[2] - copies[1])
    text.num_layers = 1
    assert memory.text_encoder_bytes(text, 40, bf16) == pytest.approx(kept, rel=0.03)


class Live(TorchDispatchMode):
    """Bytes of the tensors that operations make, while they live."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self.sizes:
            self.sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self.sizes.pop(key)


@pytest.mark.parametrize("checkpointing", [True, False])
def test_peak_of_a_step_is_as_planned(checkpointing: bool) -> None:
    """On a few blocks, in bf16: what is kept, what comes on top, and copies of weights."""
    torch.manual_seed(0)
    transformer = make_transformer(
        num_attention_heads=2, attention_head_dim=64, ffn_dim=512, num_layers=4, routing_depth=0
    ).train()
    if checkpointing:
        transformer.enable_gradient_checkpointing()
    shape = Shape(dict(transformer.config), (6, 16, 16), edit_tokens=32, text_tokens=0)
    edit = torch.randn(1, 32, shape.width, dtype=torch.bfloat16, requires_grad=True)
    noisy, source = torch.randn(2, *shape.latents)
    for parameter in transformer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with Live() as live:
        with torch.autocast("cpu", torch.bfloat16):
            sample = transformer(noisy, torch.tensor([500.0]), transformer.embed_tokens(edit, source)).sample
            loss = sample.float().square().mean()
            del sample
        loss.backward()
    copies = weights_in_bf16(transformer)
    forward, backward = memory.work_bytes(shape, checkpointing, bf16=True)
    kept = memory.kept_bytes(shape, checkpointing, aligned=False, bf16=True)
    planned = kept + (max(forward + copies, backward) if checkpointing else copies + backward)
    assert planned == pytest.approx(live.peak, rel=0.12)


def test_memory_is_shared_by_fsdp2_and_not_by_ddp() -> None:
    eight = plan_training(paper(), 8).memory.parts
    one = plan_training(paper("parallel=ddp"), 8).memory.parts
    trained = 5_000_973_504 + 16_783_360 + 119_734_272
    assert one["trained weights"] == one["gradients"] == one["buckets of DDP"] == 4 * trained
    assert one["optimizer's moments"] == 8 * trained
    assert eight["trained weights"] == one["trained weights"] / 8
    assert eight["moving average"] == 0
    assert plan_training(paper("ema_decay=0.99"), 8).memory.parts["moving average"] == 4 * trained / 8
    vae = 4 * 704_688_668
    assert eight["frozen weights"] - vae == pytest.approx((one["frozen weights"] - vae) / 8)


def test_checkpointing_trades_memory_for_flops() -> None:
    kept = {
        on: plan_training(paper(f"model.gradient_checkpointing={str(on).lower()}"), 8) for on in (True, False)
    }
    memories = {on: plan.memory for on, plan in kept.items()}
    assert memories[True].total == memories[True].with_checkpointing == memories[False].with_checkpointing
    assert memories[False].total == memories[True].without_checkpointing > 100e9
    forward = kept[True].compute.per_clip["transformer, forward"]
    assert kept[True].compute.per_clip["transformer, recomputed"] == forward
    assert kept[False].compute.per_clip["transformer, recomputed"] == 0


def test_remedy_is_named_and_works() -> None:
    tight = ("model.gradient_checkpointing=false", "data.num_frames=5", "batch_size=8")
    plan = plan_training(paper(*tight, "data.height=352", "data.width=640"), 8, gpu_memory=80e9)
    frugal = plan_training(paper(*tight), 8, gpu_memory=plan.memory.total - 1)
    assert not frugal.memory.fits
    remedies = [remedy for remedy in frugal.memory.remedies if "nano" not in remedy]
    assert remedies == [remedies[0]]
    settings = [word for word in remedies[0].split() if "=" in word]
    assert settings == ["model.gradient_checkpointing=true"]
    mended = plan_training(paper(*tight, *settings), 8, gpu_memory=plan.memory.total - 1)
    assert mended.memory.fits


# Disk.


def test_cache_is_what_was_reckoned() -> None:
    """1.70 TB of latent pairs and about 1 TB of padded text states for 120,000 clips, both in bf16."""
    disk = plan_training(paper(), 8).disk
    assert disk["cache, latents"] == 120_000 * 2 * 48 * 21 * 44 * 80 * 2 == pytest.approx(1.70e12, rel=2e-3)
    assert disk["cache, text states"] == pytest.approx(1.0e12, rel=0.01)


# Whole plans.


@pytest.mark.filterwarnings("ignore:.*routing_depth")
@pytest.mark.parametrize("overlays", [[], [OVERLAY]], ids=["as it is", "at nano size"])
@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_is_planned(name: str, overlays: list[Path]) -> None:
    recipe = load_recipe(RECIPES / name, overlays)
    plan = plan_training(recipe, 1)
    assert plan.preset == recipe.model.preset
    assert sum(plan.compute.per_clip.values()) > 0
    assert plan.compute.per_run == recipe.steps * plan.compute.per_step
    assert plan.memory.total == sum(plan.memory.parts.values())
    assert min(*plan.memory.parts.values(), *plan.disk.values(), *plan.compute.per_clip.values()) >= 0
    if plan.preset == "nano":
        assert plan.memory.fits
    json.dumps(plan.as_json())


def test_alignment_and_cache_show_in_the_flops() -> None:
    aligned, plain = (plan_training(paper(f"alignment.weight={w}"), 8).compute.per_clip for w in (0.75, 0))
    assert plain["reference branch, expected"] == plain["alignment loss"] == 0
    assert aligned["transformer, forward"] == plain["transformer, forward"]
    assert aligned["MLLM, roughly"] > plain["MLLM, roughly"]
    cached = plan_training(paper("data.cache=somewhere"), 8).compute.per_clip
    assert cached["VAE, both clips"] == 0 < aligned["VAE, both clips"]


def test_gpus_are_as_many_as_share_the_batch() -> None:
    assert plan_training(paper()).gpus == 8
    assert plan_training(paper("batch_size=12")).gpus == 4
    assert plan_training(load_recipe(RECIPES / "nano.yaml")).gpus == 1


def test_fsdp2_gathers_a_layer_and_what_is_in_none() -> None:
    models = memory.build_models(paper())
    gathered = plan_training(paper(), 8).memory.parts["gathered by FSDP2"] / 4
    tables = {m.weight for m in models.objective.modules() if isinstance(m, torch.nn.Embedding)}
    embeddings = sum(table.numel() for table in tables)
    block = sum(p.numel() for p in models.objective["transformer"].blocks[0].parameters())
    assert 3 * block + embeddings < gathered < 3 * block + embeddings + 0.3e9


def test_batch_that_gpus_cannot_share() -> None:
    with pytest.raises(
        UserError, match="batch_size is 8: it must be a multiple of GPUs x accumulation, 3 x 1"
    ):
        plan_training(paper(), 3)


def test_why_a_recipe_cannot_run() -> None:
    nano = load_recipe(RECIPES / "nano.yaml")
    assert why_not_runnable(nano, 0) is None
    assert why_not_runnable(nano, 1) is None
    for recipe, gpus, reason in (
        (paper("model.init_from=null"), 8, "weights of wan2.2-5b are not here"),
        (paper("model.init_from=there"), 0, "no GPU"),
        (paper("model.init_from=there"), 8, "a GPU here has 24 GB"),
    ):
        line = why_not_runnable(recipe, gpus, 24e9)
        assert line is not None
        assert reason in line
        assert "GB on each of 8 GPUs" in line
        assert "--overlay recipes/nano_scale.yaml" in line
        assert "\n" not in line
    assert why_not_runnable(paper("model.init_from=there"), 8, 1e15) is None


def test_printed_as_text_and_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    plan = plan_training(paper(), 8)
    print_plan(plan)
    text = capsys.readouterr().out
    for piece in ("5,000,973,504", "18,480", "1.703 TB", "365.9 TFLOP", "wan2.2-5b", "8 GPUs"):
        assert piece in text
    assert "\x1b" not in text
    print_plan(plan, as_json=True)
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(plan.as_json()))
