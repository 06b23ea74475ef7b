"""The dry run's figures against models, operations counted on real tensors, and what is published."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_mllm, make_text_encoder, make_transformer
from diffusers.models.attention_dispatch import attention_backend
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedTokenizerFast

from rvedit.editing.peak_memory import LiveBytes
from rvedit.io.errors import UserError
from rvedit.io.records import ClipShape
from rvedit.models import flops
from rvedit.models.flops import Shape
from rvedit.models.quantized_linear import store_weights
from rvedit.training import memory
from rvedit.training.costs import EditorCosts
from rvedit.training.plan import plan_training, why_not_runnable
from rvedit.training.recipe import Recipe, load_recipe
from rvedit.training.recipe_sections import ModelRecipe
from rvedit.training.trainable import choose_trained
from rvedit_cli.plan import print_plan

RECIPES = Path(__file__).parents[1] / "recipes"
NOT_FOR_TRAINING = {"data.yaml", "nano_arms.yaml", "nano_pairs.yaml", "nano_scale.yaml", "table1.yaml"}
NAMES = sorted(path.name for path in RECIPES.glob("*.yaml") if path.name not in NOT_FOR_TRAINING)
OVERLAY = RECIPES / "nano_scale.yaml"


def paper(*assignments: str) -> Recipe:
    return load_recipe(RECIPES / "rvedit.yaml", [], assignments)


# Parameters.


def test_published_sizes() -> None:
    groups = {group.name: group.trained + group.frozen for group in EditorCosts(paper()).groups}
    assert groups["transformer"] == pytest.approx(5.00e9, rel=1e-3)
    assert groups["MLLM language tower"] + groups["MLLM vision encoder"] == 3_754_622_976  # Qwen2.5-VL-3B
    assert groups["text encoder"] == 5_680_910_336  # umT5-xxl's encoder
    assert groups["VAE"] == pytest.approx(0.7047e9, rel=1e-3)


def test_adapters_are_those_of_the_paper() -> None:
    groups = {group.name: group for group in EditorCosts(paper()).groups}
    assert groups["MLLM LoRA weights"].trained == pytest.approx(0.12e9, rel=0.01)  # rank 64 (section 5)
    assert groups["MLLM LoRA weights"].frozen == groups["MLLM language tower"].trained == 0


def test_appendix_d1_freezes_the_adapters() -> None:
    groups = {g.name: g for g in EditorCosts(load_recipe(RECIPES / "paper_letter_d1.yaml")).groups}
    trained = {name for name, group in groups.items() if group.trained}
    assert trained == {"transformer", "connector and queries"}
    assert groups["MLLM language tower"].frozen > 3e9


def test_recipe_chooses_what_is_trained() -> None:
    def trained(*assignments: str) -> dict[str, int]:
        return {g.name: g.trained for g in EditorCosts(paper(*assignments)).groups}

    default = trained()
    assert default["MLLM language tower"] == default["MLLM vision encoder"] == default["text encoder"] == 0
    whole = trained("model.lora_rank=0", "model.frozen=[]")
    assert "MLLM LoRA weights" not in whole
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
    assert step["transformer, forward"] == pytest.approx(forward.get_total_flops(), rel=0.03)
    assert step["transformer, backward"] == pytest.approx(backward.get_total_flops(), rel=0.03)

    with FlopCounterMode(display=False) as again:
        transformer.enable_gradient_checkpointing()
        transformer.train()
        groups = transformer.embed_tokens(edit, source, text)
        transformer(noisy, torch.tensor([500.0]), groups).sample.square().mean().backward()
    total = sum(flops.step_flops(shape).values())
    assert total == pytest.approx(again.get_total_flops(), rel=0.03)

    for depth in (1, 3):
        with FlopCounterMode(display=False) as reference, torch.no_grad():
            groups = transformer.embed_tokens(edit, source, text)
            transformer(noisy, torch.tensor([500.0]), groups, None, depth, stop_at_trace=True)
        expected = flops.step_flops(shape, (depth,), checkpointing=False)["reference branch, expected"]
        assert expected == pytest.approx(reference.get_total_flops(), rel=0.06)


def test_a_reference_image_is_counted():
    plain, pictures = (EditorCosts(paper("model.routing_depth=30", f"model.reference_images={given}"))
                       for given in ("false", "true"))  # fmt: skip
    assert pictures.shape.edit_tokens == 2 * 768
    assert pictures.shape.grid[0] == plain.shape.grid[0] + 1 == 22
    ratio = sum(pictures.flops().values()) / sum(plain.flops().values())
    assert 1.05 < ratio < 1.2
    added = pictures.groups[1].trained - plain.groups[1].trained
    assert added == 768 * 2048 + (2048 * 3072 + 3072) + (3072 * 3072 + 3072)


def test_cost_model_of_the_5b() -> None:
    step = flops.step_flops(EditorCosts(paper()).shape, range(1, 31))
    assert step["transformer, forward"] == pytest.approx(365.9e12, rel=1e-3)
    assert step["reference branch, expected"] / step["transformer, forward"] == pytest.approx(0.456, abs=1e-3)
    assert sum(step.values()) == pytest.approx(1.64e15, rel=0.005)


@pytest.mark.parametrize("task", ["editor", "vae"])
def test_flops_of_the_towers_and_the_vae_are_those_counted(
    tiny_tokenizer: PreTrainedTokenizerFast, task: str
) -> None:
    costs: Any = EditorCosts(load_recipe(RECIPES / "nano.yaml"))
    if task == "vae":
        clip = torch.empty(1, 3, 13, 128, 128, device="meta")
        with FlopCounterMode(display=False) as counted, torch.no_grad():
            costs.vae.encode(clip)
        assert costs.encode_flops(ClipShape(13, 128, 128)) == pytest.approx(counted.get_total_flops())
        return
    mllm, encoder = make_mllm(tiny_tokenizer), make_text_encoder(tiny_tokenizer)
    for module in (mllm, mllm.model.visual, encoder):
        module.set_attn_implementation("eager")
    text, words = mllm.config.text_config, encoder.config
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        mllm.model.language_model(inputs_embeds=torch.randn(1, 96, 64), use_cache=False)
    tower = mllm.model.language_model
    planned = flops.stack_flops(tower, 96, 96, text.hidden_size, text.num_hidden_layers)
    assert planned == pytest.approx(counted.get_total_flops(), rel=0.05)
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        mllm.model.visual(torch.randn(2 * 16 * 16, 384), grid_thw=torch.tensor([[2, 16, 16]]))
    planned = flops.vision_flops(mllm.model.visual, (2, 16, 16))
    assert planned == pytest.approx(counted.get_total_flops(), rel=0.05)
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        encoder(torch.zeros(1, 40, dtype=torch.long))
    planned = flops.stack_flops(encoder, 40, 40, words.num_heads * words.d_kv, words.num_layers)
    assert planned == pytest.approx(counted.get_total_flops(), rel=0.05)


# Memory.


@pytest.mark.parametrize("bf16", [True, False])
@pytest.mark.parametrize("checkpointing", [True, False])
def test_peak_of_a_step_is_as_planned(checkpointing: bool, bf16: bool) -> None:
    """Of a few blocks: what is kept for the backward pass, what comes on top, and copies of weights."""
    torch.manual_seed(0)
    transformer = make_transformer(
        num_attention_heads=2, attention_head_dim=64, ffn_dim=512, num_layers=4, routing_depth=0
    ).train()
    if checkpointing:
        transformer.enable_gradient_checkpointing()
    shape = Shape(dict(transformer.config), (6, 16, 16), edit_tokens=32, text_tokens=0)
    dtype = torch.bfloat16 if bf16 else torch.float32
    edit = torch.randn(1, 32, shape.width, dtype=dtype, requires_grad=True)
    noisy, source = torch.randn(2, *shape.latents)
    for parameter in transformer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with LiveBytes() as live:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            sample = transformer(noisy, torch.tensor([500.0]), transformer.embed_tokens(edit, source)).sample
            loss = sample.float().square().mean()
            del sample
        loss.backward()
    copies = memory.BF16 * memory.matrices(transformer) * bf16
    forward, backward = memory.temporary_bytes(shape, checkpointing, bf16)
    kept = memory.saved_bytes(shape, checkpointing, aligned=False, bf16=bf16)
    planned = kept + (max(forward + copies, backward) if checkpointing else copies + backward)
    assert planned == pytest.approx(live.peak, rel=0.10)


@pytest.mark.parametrize("storage", ["fp32", "bf16", "fp8"])
@pytest.mark.parametrize("bf16", [True, False])
@pytest.mark.parametrize("checkpointing", [True, False])
def test_costs_of_a_step_with_lora_are_as_planned(checkpointing: bool, bf16: bool, storage: str) -> None:
    torch.manual_seed(0)
    transformer = make_transformer(
        num_attention_heads=2, attention_head_dim=64, ffn_dim=512, num_layers=4, routing_depth=4
    ).train()
    model = ModelRecipe(transformer_lora_rank=2)
    if storage != "fp32":
        store_weights(transformer.blocks, torch.bfloat16 if storage == "bf16" else torch.float8_e4m3fn)
    choose_trained(torch.nn.ModuleDict({"transformer": transformer}), model)
    if checkpointing:
        transformer.enable_gradient_checkpointing()
    shape = Shape(dict(transformer.config), (6, 16, 16), edit_tokens=32, text_tokens=0)
    edit = torch.randn(1, 32, shape.width)
    noisy, source = torch.randn(2, *shape.latents)
    for parameter in transformer.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            sample = transformer(noisy, torch.tensor([500.0]), transformer.embed_tokens(edit, source)).sample
            loss = sample.float().square().mean()
            del sample
        loss.backward()

    with LiveBytes() as live:
        step()
    forward, backward = memory.temporary_bytes(shape, checkpointing, bf16, lora=True)
    kept = memory.saved_bytes(shape, checkpointing, aligned=False, bf16=bf16, lora=True)
    if storage != "fp32":
        backward += memory.dequantized_bytes(transformer.blocks[0], 4, checkpointing, bf16)
    elif bf16 and not checkpointing:
        kept += memory.BF16 * memory.matrices(transformer)
    assert kept + max(forward, backward) == pytest.approx(live.peak, rel=0.10)
    with attention_backend("_native_math"), FlopCounterMode(display=False) as counted:
        step()
    planned = flops.step_flops(shape, (), checkpointing, frozen=True)
    assert sum(planned.values()) == pytest.approx(counted.get_total_flops(), rel=0.02)


@pytest.mark.parametrize("stack", ["language", "vision", "text_encoder"])
@pytest.mark.parametrize("bf16", [True, False])
def test_peak_of_a_towers_forward_is_as_planned(
    tiny_tokenizer: PreTrainedTokenizerFast, stack: str, bf16: bool
) -> None:
    """Of one more layer: what its forward pass leaves for the backward pass."""
    peaks = []
    for layers in (1, 2):
        mllm, encoder = make_mllm(tiny_tokenizer), make_text_encoder(tiny_tokenizer)
        text, vision, words = mllm.config.text_config, mllm.config.vision_config, encoder.config
        text.num_hidden_layers, vision.depth, words.num_layers = layers, layers, layers
        text.layer_types, vision.fullatt_block_indexes = ["full_attention"] * layers, [0, 1]
        module: Any
        if stack == "text_encoder":
            module, width, inner, tokens = type(encoder)(words), words.d_model, words.d_ff, 160
            call = lambda m: m(torch.zeros(1, 160, dtype=torch.long)).last_hidden_state  # noqa: E731
        elif stack == "vision":
            module, tokens = type(mllm.model.visual)(vision), 256
            width, inner = vision.hidden_size, vision.intermediate_size
            call = lambda m: m(torch.randn(256, 384), grid_thw=torch.tensor([[1, 16, 16]]))[0]  # noqa: E731
        else:
            module, tokens = type(mllm.model.language_model)(text), 256
            width, inner = text.hidden_size, text.intermediate_size
            states = torch.randn(1, 256, width, requires_grad=True)
            call = lambda m, s=states: m(inputs_embeds=s, use_cache=False).last_hidden_state  # noqa: E731
        with LiveBytes() as live, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            output = call(module.train())
            peaks.append(live.now - memory.BF16 * memory.matrices(module) * bf16)
        del output
    planned = memory.activation_bytes(stack, tokens, width, inner, bf16)
    if stack == "text_encoder":
        planned += (memory.FP32 * words.num_heads + 8) * tokens**2
    assert planned == pytest.approx(peaks[1] - peaks[0], rel=0.10)


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


def test_each_copy_of_hsdp_is_shared_by_a_machine() -> None:
    many = "batch_size=16"
    parts = {
        name: plan_training(paper(many, *options), gpus).memory.parts["trained weights"]
        for name, options, gpus in (
            ("a machine", ["parallel=fsdp2"], 8),
            ("two", ["parallel=hsdp"], 16),
            ("halves", ["parallel=hsdp", "shard_size=4"], 16),
        )
    }
    assert parts["two"] == parts["a machine"] == parts["halves"] / 2


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
    # A forward pass of each branch, and one backward through the frozen language tower and its adapters.
    towers = {on: plan.compute.per_clip["MLLM, roughly"] for on, plan in kept.items()}
    assert 1.2 < towers[True] / towers[False] < 6 / 4
    layers, tokens, width = 36, memories[True].parts["activations, MLLM"] / (36 * 4 * 2048), 2048
    assert kept[True].tokens is not None
    assert tokens == kept[True].tokens.language
    assert memories[False].parts["activations, MLLM"] > 10 * 4 * layers * tokens * width


def test_remedy_is_named_and_works() -> None:
    shape = "data.buckets=[{num_frames: 5, height: 704, width: 1280}]"
    tight = ("model.gradient_checkpointing=false", shape, "batch_size=8")
    small = "data.buckets=[{num_frames: 5, height: 352, width: 640}]"
    plan = plan_training(paper(*tight, small), 8, gpu_memory=80e9)
    frugal = plan_training(paper(*tight), 8, gpu_memory=plan.memory.total - 1)
    assert not frugal.memory.fits
    remedies = [remedy for remedy in frugal.memory.remedies if "nano" not in remedy]
    assert remedies == [remedies[0]]
    assert remedies[0].startswith("set model.gradient_checkpointing: true (")
    mended = plan_training(
        paper(*tight, "model.gradient_checkpointing=true"), 8, gpu_memory=plan.memory.total - 1
    )
    assert mended.memory.fits


# Disk.


def test_cache_is_what_was_reckoned() -> None:
    """1.70 TB of latent pairs and about 1 TB of padded text states for 120,000 clips, both in bf16."""
    disk = plan_training(paper(), 8).disk
    assert disk["cache, latents"] == 120_000 * 2 * 48 * 21 * 44 * 80 * 2 == pytest.approx(1.70e12, rel=2e-3)
    assert disk["cache, text states"] == pytest.approx(1.0e12, rel=0.01)


# Whole plans.


@pytest.mark.slow
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


def test_a_constant_ratio_costs_passes_and_a_gradient() -> None:
    fixed, kept = (
        plan_training(paper("alignment.weight=null", "alignment.ratio=0.1") if ratio else paper(), 8)
        for ratio in (False, True)
    )
    again = kept.compute.per_clip.pop("editing branch to the traced block")
    assert again == 4 * kept.compute.per_clip["reference branch, expected"]
    assert kept.compute.per_clip["transformer, backward"] == fixed.compute.per_clip["transformer, backward"]
    assert kept.compute.per_clip["MLLM, roughly"] > 1.5 * fixed.compute.per_clip["MLLM, roughly"]
    added = kept.memory.total - fixed.memory.total
    assert added == kept.memory.parts["gradient of alignment"] == kept.memory.parts["gradients"]


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


@pytest.mark.parametrize(("precision", "size", "gradient"), [("bf16", 2, 6), ("fp32", 4, 4)])
def test_fsdp2_gathers_a_layer_and_what_is_in_none(precision: str, size: int, gradient: int) -> None:
    """In bf16, a gradient is copied to fp32 before it is summed."""
    models = EditorCosts(paper())
    gathered = plan_training(paper(f"precision={precision}"), 8).memory.parts["gathered by FSDP2"]
    tables = {m.weight for m in models.objective.modules() if isinstance(m, torch.nn.Embedding)}
    embeddings = sum(table.numel() for table in tables)
    block = sum(p.numel() for p in models.objective["transformer"].blocks[0].parameters())
    least = (2 * size + gradient) * block + size * embeddings
    assert least < gathered < least + 0.3e9 * (size + gradient)


def test_weights_gathered_in_bf16_are_not_copied() -> None:
    plain = ("model.gradient_checkpointing=false",)
    assert plan_training(paper(*plain), 8).memory.parts["weights in bf16, kept"] == 0
    copied = plan_training(paper(*plain, "parallel=ddp"), 8).memory.parts["weights in bf16, kept"]
    assert copied == pytest.approx(2 * (5.0e9 + 3.1e9), rel=0.1)


def test_batch_that_gpus_cannot_share() -> None:
    with pytest.raises(
        UserError, match="batch_size is 8: it must be a multiple of processes x accumulation, 3 x 1"
    ):
        plan_training(paper(), 3)


def test_why_a_recipe_cannot_run() -> None:
    nano = load_recipe(RECIPES / "nano.yaml")
    assert why_not_runnable(nano, 0) is None
    assert why_not_runnable(nano, 1) is None
    for recipe, gpus, reason in (
        (paper("model.init_from=null"), 8, "wan2.2-5b cannot be trained from scratch"),
        (paper("model.init_from=there"), 0, "no GPU"),
        (paper("model.init_from=there"), 8, "a GPU has 24 GB"),
    ):
        line = why_not_runnable(recipe, gpus, 24e9)
        assert line is not None
        assert reason in line
        assert "GB on each of 8 GPUs" in line
        assert "`overlay` recipes/nano_scale.yaml" in line
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
