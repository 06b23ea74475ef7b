"""Two processes that share a clip compute what one computes: outputs, traces, losses and gradients."""

from functools import partial
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from conftest import CHANNELS, TEXT_WIDTH, make_transformer
from diffusers import ContextParallelConfig
from processes import on_two
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from rvedit.io.errors import UserError
from rvedit.losses.alignment import alignment_loss
from rvedit.models.context_parallel import share_clips
from rvedit.models.model_spec import model_spec
from rvedit.training.distributed import Processes
from rvedit.training.plan import plan_training
from rvedit.training.recipe import Recipe


class FloatNorm(nn.RMSNorm):
    """RMS norm that is fp32 under autocast on a CPU, too, as it is on a GPU."""

    def forward(self, x):
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


def make_shared(**config):
    torch.manual_seed(0)
    transformer = make_transformer(**config).train()
    for block in transformer.blocks:
        for name in ("norm_q", "norm_k"):
            norm = getattr(block.attn1, name)
            setattr(block.attn1, name, FloatNorm(norm.normalized_shape, norm.eps))
    return transformer


def inputs(reference):
    torch.manual_seed(1)
    shape = 2, CHANNELS, 2, 4, 4
    noisy, source = torch.randn(shape), torch.randn(shape)
    picture = torch.randn(2, CHANNELS, 1, 4, 4) if reference else None
    text = torch.randn(2, 5, TEXT_WIDTH)
    return noisy, torch.tensor([300.0, 700.0]), (torch.randn(2, 6, 64), source, text, picture)


def losses_and_gradients(transformer, reference, bf16, depth, stop):
    """The sum of L_fm and Eq. 5 as in a training step, and the gradient of every parameter."""
    noisy, timestep, tokens = inputs(reference)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        with torch.no_grad():
            anchor = transformer(
                noisy.flip(0),
                timestep,
                transformer.embed_tokens(*tokens),
                trace_depth=depth,
                stop_at_trace=True,
            ).trace
        output = transformer(
            noisy, timestep, transformer.embed_tokens(*tokens), trace_depth=depth, stop_at_trace=stop
        )
    losses = [alignment_loss(output.trace.float(), anchor.float())]
    if not stop:
        losses.append(output.sample.float().square().mean())
    sum(losses).backward()
    gradients = {n: p.grad.clone() for n, p in transformer.named_parameters() if p.grad is not None}
    transformer.zero_grad()
    return torch.stack(losses).detach(), gradients


CASES = [
    # reference image, its place, bf16, traced block, whether the pass stops there, gradient checkpointing
    (False, False, False, 1, True, False),
    (False, False, False, 3, False, True),
    (True, False, False, 4, False, False),
    (True, True, False, 2, True, False),
    (False, False, True, 3, False, True),
]


def compare(rank, store):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (1, 1, 2), mesh_dim_names=("data", "ring", "ulysses"))
    for reference, first, bf16, depth, stop, checkpointing in CASES:
        config = {"reads_reference_images": reference, "reference_first": first}
        case = partial(losses_and_gradients, reference=reference, bf16=bf16, depth=depth, stop=stop)
        alone, shared = make_shared(**config), make_shared(**config)
        share_clips(shared, mesh)
        if checkpointing:
            shared.enable_gradient_checkpointing()
        (losses, gradients), (own_losses, parts) = case(alone), case(shared)
        tolerance = {"rtol": 0, "atol": 3e-2} if bf16 else {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(own_losses, losses, **tolerance)
        assert parts.keys() == gradients.keys()
        for name, part in parts.items():
            dist.all_reduce(part)
            torch.testing.assert_close(part, gradients[name], **tolerance, msg=lambda m, n=name: f"{n}: {m}")
    edits_as_users_of_diffusers_share_them()
    dist.destroy_process_group()


@torch.no_grad()
def edits_as_users_of_diffusers_share_them():
    noisy, timestep, tokens = inputs(reference=False)
    alone, shared = make_shared(), make_shared()
    with patch("torch.accelerator.device_count", return_value=1):  # it asks for an accelerator
        shared.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))
    samples = [t(noisy, timestep, t.embed_tokens(*tokens)).sample for t in (alone, shared)]
    torch.testing.assert_close(*samples, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_outputs_traces_and_gradients_of_a_shared_clip(tmp_path):
    on_two(compare, tmp_path / "store")


def test_what_cannot_be_shared_is_refused_before_a_run():
    def plan(gpus=8, **changes):
        recipe = Recipe.model_validate({"batch_size": 4, "context_parallel": 2, **changes})
        return plan_training(recipe, gpus)

    assert plan().clips_at_once == 1
    with pytest.raises(UserError, match="context_parallel is 3: it must divide 8 processes"):
        plan(context_parallel=3)
    with pytest.raises(UserError, match="context_parallel is 5: it must divide 24 attention heads"):
        plan(5, context_parallel=5)
    with pytest.raises(UserError, match="context_parallel is 3: it must divide the 880 tokens"):
        plan(3, context_parallel=3, batch_size=3)
    with pytest.raises(
        UserError, match=r"batch_size is 6: .* processes / context_parallel x accumulation, 4 x 1"
    ):
        plan(batch_size=6)
    with pytest.raises(UserError, match="context_parallel is 2: it must divide the number of processes, 1"):
        Processes("ddp", "cpu", context_parallel=2)


def test_sharing_a_clip_divides_activations_and_not_the_encoders():
    one, two = (
        plan_training(Recipe.model_validate({"batch_size": 8 // n, "context_parallel": n}), 8) for n in (1, 2)
    )
    part = "activations, transformer"
    assert 0.5 < two.memory.parts[part] / one.memory.parts[part] < 0.6
    for name in ("MLLM, roughly", "VAE, both clips"):
        assert two.compute.per_clip[name] == 2 * one.compute.per_clip[name]
    blocks = model_spec("wan2.2-5b").num_layers
    tokens, d = one.tokens, 3072
    context = tokens.edit * blocks + (tokens.visual + tokens.text) * (blocks - 15)
    more = two.compute.per_clip["transformer, forward"] - one.compute.per_clip["transformer, forward"]
    assert more == pytest.approx(4 * context * d * d), "keys and values of the context, a second time"
