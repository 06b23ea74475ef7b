"""Private names of other libraries still do what `rvedit.compat` says; nothing else uses private names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from conftest import make_pipeline, make_transformer, make_vae
from diffusers import FirstBlockCacheConfig
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, patchify
from foreign import make_wan_transformer, to_original_transformer
from torch import Tensor

from rvedit import compat
from rvedit.studio.guard import refuse_downloads

ROOT = Path(__file__).parents[1]
PRIVATE = re.compile(
    r"\w+\._(?!replace\b|fields\b|asdict\b|exit\b|_)[a-zA-Z]\w*"
    r"|from [\w.]+\._\w+ import|import _[a-z]"
)


def test_no_other_file_uses_a_private_name() -> None:
    found = [
        f"{path.name}:{number}: {line.strip()}"
        for path in sorted((ROOT / "rvedit").rglob("*.py"))
        if path.name != "compat.py"
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if PRIVATE.search(line.partition("#")[0]) and "self._" not in line and "cls._" not in line
    ]
    assert not found


def test_storage_key_is_the_storages() -> None:
    a = torch.zeros(4)
    assert compat.storage_key(a) == compat.storage_key(a[1:])
    assert compat.storage_key(a) != compat.storage_key(torch.zeros(4))


def test_modes_see_operations_and_trees_their_tensors() -> None:
    seen = []

    class Watch(compat.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.extend(x for x in compat.tree_iter((args, kwargs)) if isinstance(x, Tensor))
            return func(*args, **(kwargs or {}))

    a, b = torch.ones(2), torch.ones(2)
    with Watch():
        a + b
    assert [x is y for x, y in zip(seen, (a, b), strict=True)] == [True, True]


def test_bf16_is_asked_of_the_device() -> None:
    assert compat.computes_bf16(torch.device("cuda")) is True
    assert isinstance(compat.computes_bf16(torch.device("cpu")), bool)


def test_offloaded_modules_are_onloaded(tiny_tokenizer) -> None:
    pipeline = make_pipeline(tiny_tokenizer)
    assert compat.execution_device(pipeline) == torch.device("cpu")
    called = []
    pipeline.enable_model_cpu_offload(device="cpu")
    for module in (pipeline.vae, pipeline.mllm):
        hook = module._hf_hook
        original = hook.pre_forward
        hook.pre_forward = lambda module, *args, original=original: (
            called.append(module),
            original(module, *args),
        )[1]
        compat.onload(module)
    assert called == [pipeline.vae, pipeline.mllm]
    compat.onload(torch.nn.Linear(1, 1))  # one without a hook stays where it is


@torch.no_grad()
def test_a_feature_cache_decodes_as_the_vae_does() -> None:
    torch.manual_seed(0)
    vae = make_vae()
    latents = torch.randn(1, vae.config.z_dim, 3, 2, 2)
    hidden, parts = vae.post_quant_conv(latents), []
    cache = compat.new_feature_cache(vae)
    assert cache
    assert set(cache) == {None}
    for index in range(3):
        part = vae.decoder(
            hidden[:, :, index : index + 1], feat_cache=cache, feat_idx=[0], first_chunk=not index
        )
        parts.append(compat.unpatchify(part, vae.config.patch_size))
    pixels = torch.cat(parts, dim=2).clamp(-1, 1)
    torch.testing.assert_close(pixels, vae.decode(latents).sample, rtol=0, atol=1e-5)


def test_unpatchify_undoes_patchify() -> None:
    pixels = torch.randn(1, 3, 2, 4, 6)
    assert torch.equal(compat.unpatchify(patchify(pixels, 2), 2), pixels)


def test_causal_padding_is_frames_rows_columns() -> None:
    assert compat.causal_padding(WanCausalConv3d(1, 1, (3, 3, 5), padding=(1, 1, 2))) == (2, 1, 2)


def test_a_step_cache_is_reset() -> None:
    transformer = make_transformer()
    config = FirstBlockCacheConfig(threshold=0.1)
    transformer.enable_cache(config)
    assert compat.clear_step_cache(transformer) is config


def test_ratios_are_resampled_to_the_nearest() -> None:
    values = torch.tensor([1.0, 2.0, 3.0])
    assert compat.nearest_interp(values, 3).tolist() == [1, 2, 3]
    assert (
        compat.nearest_interp(values, 5).tolist() == [1, 1, 2, 2, 3]
        or len(compat.nearest_interp(values, 5)) == 5
    )


def test_plain_attention_is_set_at_one_processor() -> None:
    first, second = (block.attn2.processor for block in make_transformer().blocks[:2])
    before = compat.attention_backend(second)
    compat.set_math_attention(first)
    assert compat.attention_backend(first).value == "_native_math"
    assert compat.attention_backend(second) is before


def test_wans_original_keys_are_converted() -> None:
    model = make_wan_transformer()
    converted = compat.convert_wan_keys(to_original_transformer(model.state_dict()))
    assert converted.keys() == model.state_dict().keys()


def test_gradio_downloads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gr = pytest.importorskip("gradio")
    names = gr.processing_utils
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setattr(names, "async_ssrf_protected_get", names.async_ssrf_protected_get)  # set back
    refuse_downloads()
    url = "http://203.0.113.1/x.mp4"
    for download in (gr.File().move_resource_to_block_cache, gr.File()._download_files):
        with pytest.raises(gr.Error, match="other addresses are not fetched"):
            download(url)


@pytest.mark.parametrize(
    ("size", "expected"), [((100, 200), (112, 196)), ((10, 10), (28, 28)), ((1000, 1000), (504, 504))]
)
def test_smart_resize_keeps_the_grid_and_the_area(size: tuple[int, int], expected: tuple[int, int]) -> None:
    rows, columns = compat.smart_resize(*size, 28, 28 * 28, 504 * 504)
    assert (rows, columns) == expected
