"""What cross-attention reads, and how alike traces are: against materialised, hand-made, scipy's numbers."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import make_transformer
from scipy.spatial.distance import cosine, jensenshannon
from torch import Tensor

from rvedit.analysis.observe import observed_attention, observed_traces
from rvedit.analysis.reading import attention_rows, attention_statistics
from rvedit.analysis.traces import cosine_similarity, js_divergence, trace_similarity, trace_spread
from rvedit.losses.alignment import alignment_loss

GROUPS = [3, 20, 6]


def random_attention(dtype: torch.dtype = torch.float32, sharpness: float = 2.0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    query = torch.randn(2, 37, 4, 8, dtype=dtype) * sharpness
    return query, torch.randn(2, sum(GROUPS), 4, 8, dtype=dtype)


def materialised(query: Tensor, key: Tensor) -> tuple[list[float], float]:
    """The definitions, with the whole S x N matrix."""
    logits = torch.einsum("bshe,bnhe->bhsn", query.double(), key.double()) / math.sqrt(query.shape[-1])
    attention = logits.softmax(dim=-1)
    received = attention.sum(dim=2)  # Z_n
    spatial = attention / received[:, :, None]  # q_n(s)
    entropy = -(spatial * spatial.log()).sum(dim=2) / math.log(query.shape[1])
    mass = [float(part.sum() / received.sum()) for part in received.split(GROUPS, dim=-1)]
    return mass, float((received * entropy).sum() / received.sum())


@pytest.mark.parametrize("tile", [1, 500, 2**22])
@pytest.mark.parametrize("sharpness", [0.1, 2.0, 40.0])
def test_streamed_reading_equals_the_materialised_one(tile: int, sharpness: float) -> None:
    query, key = random_attention(sharpness=sharpness)
    reading = attention_statistics(query, key, GROUPS, tile)
    mass, entropy = materialised(query, key)
    assert reading.mass.tolist() == pytest.approx(mass, abs=1e-6)
    assert reading.entropy == pytest.approx(entropy, abs=1e-6)
    assert float(reading.mass.sum()) == pytest.approx(1)


def test_reading_of_cases_known_by_hand() -> None:
    # Keys of zero: every position reads all tokens alike, and all maps are uniform.
    query = torch.randn(1, 5, 1, 4)
    uniform = attention_statistics(query, torch.zeros(1, 4, 1, 4), [1, 3])
    assert uniform.mass.tolist() == pytest.approx([0.25, 0.75])
    assert uniform.entropy == pytest.approx(1)
    # Position i reads token i alone: each map is a single position.
    eye = 1000 * torch.eye(4)[None, :, None]
    sharp = attention_statistics(eye, eye, [2, 2])
    assert sharp.mass.tolist() == pytest.approx([0.5, 0.5])
    assert sharp.entropy == pytest.approx(0)
    # Two positions on each of two tokens: ln 2 of ln 4.
    halves = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]])[None, :, None] * 1000
    assert attention_statistics(halves, torch.eye(2)[None, :, None] * 1000, [2]).entropy == pytest.approx(0.5)


def test_reading_keeps_no_matrix_and_refuses_other_groups() -> None:
    query, key = random_attention()
    largest = max(rows.numel() for rows, _ in attention_rows(query, key, tile=700))
    assert largest <= 700
    with pytest.raises(ValueError, match="the context has 29"):
        attention_statistics(query, key, [3, 20])


def test_maps_are_what_attention_reads() -> None:
    query, key = random_attention()
    whole = torch.cat([rows.mean(dim=1) for rows, _ in attention_rows(query, key, tile=300)], dim=1)
    expected = (torch.einsum("bshe,bnhe->bhsn", query, key) / math.sqrt(8)).softmax(dim=-1).mean(dim=1)
    torch.testing.assert_close(whole, expected)


def test_the_same_traces_are_alike() -> None:
    trace = torch.randn(2, 9, 6)
    assert js_divergence(trace, trace) == 0
    assert cosine_similarity(trace, trace) == pytest.approx(1)
    assert cosine_similarity(trace, -trace) == pytest.approx(-1)
    assert js_divergence(trace, 3 * trace) == pytest.approx(0, abs=1e-6)  # where, not how much


def test_js_and_cosine_by_hand() -> None:
    # Rows of lengths 1, 0 and 0, 1: energy maps that have nothing in common.
    first, second = torch.tensor([[[1.0, 0], [0, 0]]]), torch.tensor([[[0.0, 0], [0, 2]]])
    assert js_divergence(first, second) == pytest.approx(1)
    # (1, 0) against (1/2, 1/2): KL to (3/4, 1/4) of 0.41504 and 0.20752 bits.
    both = torch.tensor([[[0.0, 1], [1, 0]]])
    assert js_divergence(first, both) == pytest.approx((math.log2(4 / 3) + 0.5 * math.log2(4 / 3)) / 2)
    assert cosine_similarity(first, both) == pytest.approx(0)
    slanted = torch.tensor([[[1.0, 1], [1, 0]]])
    assert cosine_similarity(torch.tensor([[[1.0, 0], [2, 0]]]), slanted) == pytest.approx(
        (math.sqrt(0.5) + 1) / 2
    )


def test_js_and_cosine_are_scipys() -> None:
    torch.manual_seed(1)
    trace, reference = torch.randn(2, 1, 50, 12).unbind(0)
    p, q = (x[0].norm(dim=-1).numpy() for x in (trace, reference))
    assert js_divergence(trace, reference) == pytest.approx(jensenshannon(p, q, base=2) ** 2, abs=1e-6)
    cosines = [1 - cosine(a, b) for a, b in zip(trace[0].numpy(), reference[0].numpy(), strict=True)]
    assert cosine_similarity(trace, reference) == pytest.approx(np.mean(cosines), abs=1e-6)


def test_spread_and_alignment() -> None:
    torch.manual_seed(2)
    same = torch.ones(1, 8, 4) * torch.rand(1, 8, 1).add(0.5)  # one direction, several lengths
    assert trace_spread(same) == pytest.approx(0, abs=1e-6)
    assert trace_spread(torch.tensor([[[1.0, 0], [-1, 0]]])) == pytest.approx(1)
    alike = trace_similarity(same, same, 0.07)
    assert alike.alignment == pytest.approx(math.log(8), abs=1e-5)  # nothing tells a position from another
    trace, reference = torch.randn(2, 1, 8, 4).unbind(0)
    assert trace_similarity(trace, reference, 0.07).alignment == pytest.approx(
        float(alignment_loss(trace, reference, 0.07))
    )
    vectors = F.normalize(trace[0], dim=-1)
    assert trace_spread(trace) == pytest.approx(float(1 - (vectors @ vectors.T).mean()), abs=1e-6)


def test_looking_on_changes_nothing_and_sees_what_is_computed() -> None:
    torch.manual_seed(3)
    model = make_transformer()
    latents = torch.randn(1, 8, 2, 3, 4)
    groups = model.embed_tokens(torch.randn(1, 5, 64), torch.randn(1, 8, 2, 3, 4), torch.randn(1, 6, 32))
    time = torch.tensor([500.0])
    plain = model(latents, time, groups, trace_depth=3)
    before = [block.attn2.processor for block in model.blocks]
    seen: dict[int, tuple[Tensor, Tensor]] = {}
    traces: dict[int, Tensor] = {}
    with (
        observed_attention(model, lambda block, query, key: seen.update({block: (query, key)})),
        observed_traces(model, lambda block, trace: traces.update({block: trace})),
    ):
        observed = model(latents, time, groups)
    assert torch.equal(plain.sample, observed.sample)
    assert [block.attn2.processor for block in model.blocks] == before
    assert torch.equal(traces[3], plain.trace)
    assert [seen[block][1].shape[1] for block in (1, 2, 3, 4)] == [5, 5, 35, 35]
    # The queries and keys are those of the attention: with the values they give the trace.
    query, key = seen[3]
    attn = model.blocks[2].attn2
    context = torch.cat([groups.edit_tokens, groups.visual_tokens, groups.text_tokens], dim=1)
    attention = (torch.einsum("bshe,bnhe->bhsn", query, key) / math.sqrt(16)).softmax(dim=-1)
    value = attn.to_v(context).unflatten(-1, (4, 16))
    output = attn.to_out[0](torch.einsum("bhsn,bnhe->bshe", attention, value).flatten(2))
    torch.testing.assert_close(output, traces[3], atol=1e-5, rtol=1e-4)
    model(latents, time, groups)
    assert len(traces) == 4  # nobody looks on any more


def test_a_model_that_reads_the_source_loses_mass_there_when_that_is_scrambled() -> None:
    """A model taught to read X_v, by its mass alone; then X_v's channels are exchanged."""
    torch.manual_seed(4)
    model = make_transformer(routing_depth=0)
    latents, time = torch.randn(1, 8, 2, 3, 4), torch.tensor([500.0])
    inputs = (torch.randn(1, 5, 64), torch.randn(1, 8, 2, 3, 4), torch.randn(1, 6, 32))
    groups = [5, 24, 6]

    def mass_on_source() -> Tensor:
        found: list[Tensor] = []

        def look(block: int, query: Tensor, key: Tensor) -> None:
            attention = (torch.einsum("bshe,bnhe->bhsn", query, key) / math.sqrt(16)).softmax(dim=-1)
            found.append(attention[..., 5:29].sum(dim=-1).mean())

        with observed_attention(model, look):
            model(latents, time, model.embed_tokens(*inputs))
        return torch.stack(found).mean()

    def read_mass() -> list[float]:
        masses: list[float] = []
        with (
            torch.no_grad(),
            observed_attention(
                model, lambda _, q, k: masses.append(float(attention_statistics(q, k, groups).mass[1]))
            ),
        ):
            model(latents, time, model.embed_tokens(*inputs))
        return masses

    untaught = read_mass()
    weights = [w for block in model.blocks for w in (block.attn2.to_q.weight, block.attn2.to_k.weight)]
    optimizer = torch.optim.Adam(weights, lr=3e-3)
    for _ in range(30):
        optimizer.zero_grad()
        (-mass_on_source()).backward()
        optimizer.step()
    taught = read_mass()
    assert min(taught) > 0.9 > max(untaught)
    order = torch.randperm(64)
    embedder = model.visual_embedder
    with torch.no_grad():
        embedder.weight.copy_(embedder.weight[order])
        embedder.bias.copy_(embedder.bias[order])
    scrambled = read_mass()
    assert all(after < before for after, before in zip(scrambled, taught, strict=True))
