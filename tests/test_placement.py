"""Offloading, quantisation, tiles and frame-wise decoding: the same edit, held otherwise."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from conftest import edit, make_pipeline, make_vae, random_clip

from rvedit.editing.config import EditConfig
from rvedit.editing.peak_memory import LiveBytes
from rvedit.io.frames import to_frames
from rvedit.models.autoencoder import StreamDecoder, decode
from rvedit.pipelines.memory import choose_offload, place, quantize, transformer_stacks

SETTINGS = EditConfig(num_inference_steps=2, guidance_scale=2.0)
CPU = torch.device("cpu")


@pytest.fixture
def pipeline(tiny_tokenizer):
    return make_pipeline(tiny_tokenizer)


@pytest.fixture(scope="module")
def expected(tiny_tokenizer):
    return edit(make_pipeline(tiny_tokenizer), random_clip(10), "make the fish orange", SETTINGS)


@pytest.mark.parametrize(
    ("weights", "card", "offload"),
    [(32e9, 80e9, "none"), (32e9, 48e9, "model"), (20e9, 24e9, "model"), (20e9, float("inf"), "none")],
)
def test_components_take_turns_where_a_card_has_little_room_beside_them(weights, card, offload):
    assert choose_offload(weights, card) == offload


@pytest.mark.parametrize("offload", ["auto", "none", "model", "group"])
def test_an_offloaded_editor_edits_the_same(pipeline, expected, offload):
    place(pipeline, CPU, offload)
    edited = edit(pipeline, random_clip(10), "make the fish orange", SETTINGS)
    assert np.array_equal(edited, expected)
    again = edit(pipeline, random_clip(10), "make the fish orange", SETTINGS)
    assert np.array_equal(again, expected), "a second clip finds its models again"


def test_every_component_is_fetched_before_it_computes(pipeline):
    """What `--offload model` rests on: each module's hook is called before any of its weights is used."""
    fetched, used = [], []

    class Hook:
        def __init__(self, name):
            self.name = name

        def pre_forward(self, module, *args, **kwargs):
            fetched.append(self.name)

    names = ("transformer", "connector", "mllm", "text_encoder", "vae")
    for name in names:
        module = getattr(pipeline, name)
        hook = module._hf_hook = Hook(name)
        if name not in ("mllm", "vae"):  # accelerate's hook wraps `forward`
            module.register_forward_pre_hook(lambda m, args, hook=hook: hook.pre_forward(m), prepend=True)
        for part in module.modules():
            if not list(part.children()):
                part.register_forward_pre_hook(
                    lambda m, args, name=name: used.append((name, name in fetched))
                )
    edit(pipeline, random_clip(5), "make the fish orange", SETTINGS)
    assert {name for name, _ in used} == set(names)
    assert all(was_there for _, was_there in used)
    # Each sends the one before it in the chain back, so the chain is the order in which they compute.
    order = [name for name in dict.fromkeys(name for name, _ in used) if name != "vae"]
    assert "->".join([*order, "vae"]) == pipeline.model_cpu_offload_seq


def bytes_of(module):
    state = [*module.parameters(), *module.buffers()]
    return sum(tensor.untyped_storage().nbytes() for tensor in state)


# Of a stack's bytes at most, and decibels against the edit in full precision.
SMALLER = [("fp8", None, 0.45, 18), ("int8", "torchao", 0.5, 22), ("nf4", "bitsandbytes", 0.4, 12)]


def require(package):
    if package and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")


@pytest.mark.parametrize(("kind", "needs", "share", "least"), SMALLER)
def test_a_quantised_editor_is_smaller_and_edits_nearly_the_same(
    pipeline, expected, kind, needs, share, least
):
    require(needs)
    before = {name: bytes_of(stack) for name, stack in transformer_stacks(pipeline).items()}
    quantize(pipeline, kind, CPU)
    if kind != "int8":  # torchao's tensors keep their sizes to themselves
        for name, stack in transformer_stacks(pipeline).items():
            assert bytes_of(stack) < share * before[name] + 20_000, name
    edited = edit(pipeline, random_clip(10), "make the fish orange", SETTINGS)
    error = np.square(edited.astype(float) - expected).mean()
    assert error > 0
    assert 10 * np.log10(255**2 / error) > least


@pytest.mark.parametrize(("kind", "needs"), [row[:2] for row in SMALLER])
def test_a_quantised_editor_is_offloaded_like_any_other(tiny_tokenizer, kind, needs):
    require(needs)
    edits = []
    for offload in ("none", "model", "group"):
        pipeline = make_pipeline(tiny_tokenizer)
        quantize(pipeline, kind, CPU)
        place(pipeline, CPU, offload)
        edits.append(edit(pipeline, random_clip(5), "make the fish orange", SETTINGS))
    assert np.array_equal(edits[0], edits[1])
    assert np.array_equal(edits[0], edits[2])


def test_frames_are_decoded_one_by_one_to_the_same_clip():
    torch.manual_seed(0)
    vae, latents = make_vae(), torch.randn(1, 8, 4, 3, 2)
    with torch.no_grad():
        parts = list(StreamDecoder(vae)(latents))
        whole = to_frames(decode(vae, latents)[0])
    assert [part.shape[2] for part in parts] == [1, 4, 4, 4]
    assert np.array_equal(to_frames(torch.cat(parts, dim=2)[0]), whole)
    vae.enable_tiling()
    with torch.no_grad():
        assert np.array_equal(StreamDecoder(vae).frames(latents), whole), "smaller than a tile"


def test_pieces_are_decoded_as_the_whole_whatever_comes_between():
    torch.manual_seed(0)
    vae, latents = make_vae(), torch.randn(1, 8, 5, 3, 2)
    with torch.no_grad():
        whole = to_frames(decode(vae, latents)[0])
        decoder = StreamDecoder(vae)
        first = decoder.frames(latents[:, :, :3])
        decode(vae, torch.randn(1, 8, 2, 3, 2))  # another clip
        rest = decoder.frames(latents[:, :, 3:])
    assert np.array_equal(np.concatenate([first, rest]), whole)


def test_tiles_over_several_windows(pipeline):
    """Tiles keep no memory between windows: every frame comes out all the same, and nearly as without."""
    clip, settings = random_clip(20, 32, 48), EditConfig(2)
    plain = edit(pipeline, clip, "make the fish orange", settings)
    pipeline.vae.enable_tiling(tile_sample_min_height=16, tile_sample_min_width=16)
    pipeline.vae.tile_sample_stride_height = pipeline.vae.tile_sample_stride_width = 16
    tiled = edit(pipeline, clip, "make the fish orange", settings)
    assert tiled.shape == plain.shape
    assert not np.array_equal(tiled, plain), "tiles were used"


def test_a_long_clip_takes_no_more_memory_to_decode_than_a_short_one():
    vae = make_vae()

    def peak(latent_frames, whole):
        latents = torch.randn(1, 8, latent_frames, 8, 8)
        with torch.no_grad(), LiveBytes() as live:
            if whole:
                decode(vae, latents)
            else:
                for _ in StreamDecoder(vae)(latents):
                    pass
        return live.peak

    short, long = peak(3, False), peak(11, False)
    assert long < 1.1 * short
    assert peak(11, True) > 1.5 * long, "the library's way holds the clip, and twice as it grows"


def test_tiles_give_nearly_the_same():
    torch.manual_seed(0)
    vae, latents = make_vae(), torch.randn(1, 8, 4, 24, 24)
    with torch.no_grad():
        whole = StreamDecoder(vae).frames(latents).astype(float)
        vae.enable_tiling()
        tiled = StreamDecoder(vae).frames(latents)
        rest = StreamDecoder(vae).frames(latents, num_decoded=2)
    assert tiled.shape == whole.shape
    differences = np.array([[np.abs(a - b).mean() for b in whole] for a in tiled])
    assert (differences.argmin(axis=1) == np.arange(len(whole))).all(), "each frame is nearest to its own"
    assert np.diag(differences).max() < 8, "grey levels; another frame is 18 or more away"
    assert np.array_equal(rest, tiled[5:]), "two latents are one frame and four"
