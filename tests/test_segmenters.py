"""Segmenters on tiny random models of transformers' classes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from processes import rvedit
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    EdgeTamVideoConfig,
    EdgeTamVideoModel,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    PreTrainedTokenizerFast,
    Sam2HieraDetConfig,
    Sam2VideoConfig,
    Sam2VideoInferenceSession,
    Sam2VideoModel,
    Sam2VisionConfig,
    Sam3Config,
    Sam3TrackerVideoConfig,
    Sam3VideoConfig,
    Sam3VideoInferenceSession,
    Sam3VideoModel,
    SwinConfig,
)
from transformers.models.grounding_dino.image_processing_pil_grounding_dino import (
    GroundingDinoImageProcessorPil,
)
from transformers.models.sam3_video import modeling_sam3_video

from rvedit.editing import segmenters
from rvedit.editing.segmenters import BoxTracker, FramePreprocessor, check_segmenter, load_segmenter
from rvedit.io.errors import UserError
from rvedit.io.video import VideoReader, write_clip

CPU = torch.device("cpu")
HEIGHT, WIDTH = 48, 80
HIDDEN = 128
BOXES = np.array([[0, 0, 40, 24], [30, 20, 80, 48]], np.float32)


def make_frames(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, HEIGHT, WIDTH, 3), np.uint8)


def save_tokenizer(folder: Path) -> None:
    """The ids are BERT's: Grounding DINO knows those of its special tokens by heart."""
    words = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 1012: ".", 1996: "the", 3899: "dog"}
    vocabulary = {words.get(number, f"[unused{number}]"): number for number in range(4000)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 102), ("[CLS]", 101))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(
        folder
    )


def save_image_processor(folder: Path, size: int) -> None:
    """As in the hub's checkpoints; the classes need torchvision."""
    config = {
        "image_processor_type": "Sam2ImageProcessorFast", "size": {"height": size, "width": size},
        "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "rescale_factor": 1 / 255,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(config))


def save_detector(folder: Path, logit: float) -> Path:
    """Two queries that give each token this logit, and as box the quarter at the top left."""
    torch.manual_seed(0)
    swin = SwinConfig(
        image_size=32, patch_size=4, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=2,
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    bert = BertConfig(
        vocab_size=4000, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    model = GroundingDinoForObjectDetection(
        GroundingDinoConfig(
            backbone_config=swin, text_config=bert, num_queries=2, encoder_layers=1, encoder_ffn_dim=16,
            encoder_attention_heads=2, decoder_layers=2, decoder_ffn_dim=16, decoder_attention_heads=2,
            d_model=32,
        )
    )  # fmt: skip
    with torch.no_grad():
        # A logit is the product of a query's state and a token's state, both constant here.
        token_norm = model.model.encoder.layers[-1].text_enhancer_layer.layer_norm_after
        for norm, value in ((token_norm, 1.0), (model.model.decoder.layer_norm, logit / 32)):
            norm.weight.zero_()
            norm.bias.fill_(value)
        # Sigmoids of center, width and height: the box covers (-0.5, -0.5) to (0.5, 0.5) of the frame.
        model.bbox_embed[0].layers[-1].weight.zero_()
        model.bbox_embed[0].layers[-1].bias.copy_(torch.tensor([-30.0, -30.0, 30.0, 30.0]))
    model.save_pretrained(folder)
    save_tokenizer(folder)
    GroundingDinoImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 128}).save_pretrained(folder)
    return folder


def tracker_options(side: int) -> dict[str, Any]:
    return {
        "memory_attention_hidden_size": HIDDEN, "memory_attention_num_layers": 1,
        "memory_attention_rope_feat_sizes": [side, side], "memory_encoder_hidden_size": HIDDEN,
        "mask_downsampler_embed_dim": HIDDEN, "memory_fuser_num_layers": 1, "memory_fuser_embed_dim": HIDDEN,
        "memory_fuser_intermediate_dim": 32,
        "mask_decoder_config": {
            "hidden_size": HIDDEN, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16,
            "iou_head_depth": 2,
        },
    }  # fmt: skip


def randomize_tracker(tracker: Any) -> None:
    """Objects are always visible, and their masks have edges."""
    torch.nn.init.constant_(tracker.mask_decoder.pred_obj_score_head.proj_out.bias, 20.0)
    torch.nn.init.normal_(tracker.mask_decoder.mask_tokens.weight, std=1.0)
    torch.nn.init.normal_(tracker.prompt_encoder.point_embed.weight, std=1.0)


def save_tracker(folder: Path, model_type: str) -> Path:
    torch.manual_seed(0)
    backbone = Sam2HieraDetConfig(
        hidden_size=8, image_size=[64, 64], blocks_per_stage=[1] * 4, embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 2, 2], window_size_per_stage=[4] * 4, global_attention_blocks=[],
    )  # fmt: skip
    options = {
        "vision_config": Sam2VisionConfig(
            backbone_config=backbone, backbone_channel_list=[64, 32, 16, 8], fpn_hidden_size=HIDDEN,
            backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
        ),
        "prompt_encoder_config": {"hidden_size": HIDDEN, "image_size": 64, "mask_input_channels": 8},
        "image_size": 64, **tracker_options(4),
    }  # fmt: skip
    if model_type == "sam2_video":
        model = Sam2VideoModel(Sam2VideoConfig(**options, memory_attention_feed_forward_hidden_size=32))
    else:
        config = EdgeTamVideoConfig(
            **options, memory_attention_mlp_hidden_size=32, memory_attention_rope_k_sizes=[2, 2],
            perceiver_resampler_num_latents=4, perceiver_resampler_num_latents_2d=4,
            perceiver_resampler_mlp_intermediate_size=16, perceiver_resampler_num_layers=1,
        )  # fmt: skip
        model = EdgeTamVideoModel(config)
    randomize_tracker(model)
    model.save_pretrained(folder)
    save_image_processor(folder, 64)
    return folder


def save_sam3(folder: Path, logit: float = 1.0) -> Path:
    """Two queries with this logit; every second frame is a conditioning frame."""
    torch.manual_seed(0)
    vision = {
        "model_type": "sam3_vision_model", "fpn_hidden_size": HIDDEN,
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        "backbone_config": {
            "model_type": "sam3_vit_model", "hidden_size": 32, "intermediate_size": 32,
            "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56, "window_size": 2,
            "global_attn_indexes": [1], "pretrain_image_size": 28,
        },
    }  # fmt: skip
    small = {"hidden_size": HIDDEN, "num_layers": 1, "num_attention_heads": 4, "intermediate_size": 32}
    detector = Sam3Config(
        vision_config=vision, geometry_encoder_config=small, detr_encoder_config=small,
        detr_decoder_config={**small, "num_queries": 2},
        mask_decoder_config={"hidden_size": HIDDEN, "num_attention_heads": 4},
        text_config={"vocab_size": 4000, "hidden_size": 32, "intermediate_size": 32, "projection_dim": 16,
                     "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 32},
    )  # fmt: skip
    tracker = Sam3TrackerVideoConfig(
        **tracker_options(4), vision_config=vision, image_size=56,
        memory_attention_feed_forward_hidden_size=32,
        prompt_encoder_config={"hidden_size": HIDDEN, "image_size": 56, "mask_input_channels": 8},
    )  # fmt: skip
    config = Sam3VideoConfig(
        detector_config=detector, tracker_config=tracker, low_res_mask_size=16, recondition_every_nth_frame=2,
        high_conf_thresh=0.0, high_iou_thresh=0.0, new_det_thresh=0.0, assoc_iou_thresh=0.0,
    )  # fmt: skip
    model = Sam3VideoModel(config)
    randomize_tracker(model.tracker_model)
    scoring, presence = (
        model.detector_model.dot_product_scoring,
        model.detector_model.detr_decoder.presence_head,
    )
    scale = HIDDEN**0.5 * scoring.scale
    with torch.no_grad():
        for layer, value in (
            (scoring.text_proj, HIDDEN**-0.5), (scoring.query_proj, logit / scale), (presence.layer3, 10.0)
        ):  # fmt: skip
            layer.weight.zero_()
            layer.bias.fill_(value)
    model.save_pretrained(folder)
    save_image_processor(folder, 56)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("segmenters")
    saved = {
        "detector": save_detector(folder / "detector", 1.0),
        "silent": save_detector(folder / "silent", -30.0),
        "sam2_video": save_tracker(folder / "sam2", "sam2_video"),
        "edgetam_video": save_tracker(folder / "edgetam", "edgetam_video"),
        "sam3_video": save_sam3(folder / "sam3"),
        "silent sam3": save_sam3(folder / "silent_sam3", -30.0),
    }
    return {name: str(path) for name, path in saved.items()}


def name_of(checkpoints: dict[str, str], model_type: str) -> str:
    """The name of a segmenter of this model type, with a detector if it needs one."""
    name = checkpoints[model_type]
    return name if model_type == "sam3_video" else f"{checkpoints['detector']}+{name}"


TRACKERS = ("sam2_video", "edgetam_video")
ALL = (*TRACKERS, "sam3_video")


@pytest.mark.parametrize("model_type", ALL)
def test_each_frame_of_a_stream_gets_its_mask_at_once(checkpoints: dict[str, str], model_type: str) -> None:
    frames = make_frames(5)
    num_read = 0

    def stream() -> Iterator[np.ndarray]:
        nonlocal num_read
        for frame in frames:
            num_read += 1
            yield frame

    segmenter = load_segmenter(name_of(checkpoints, model_type), "cpu")
    masks = []
    for mask in segmenter.masks(stream(), "the dog"):
        masks.append(mask)
        assert num_read == len(masks)
    assert len(masks) == 5
    assert all(mask.shape == (HEIGHT, WIDTH) and mask.dtype == bool for mask in masks)
    assert all(0 < mask.mean() < 1 for mask in masks)
    np.testing.assert_array_equal(masks, list(segmenter.masks(frames, "the dog")))  # no state is left


def test_an_empty_stream_has_no_masks(checkpoints: dict[str, str]) -> None:
    assert list(load_segmenter(name_of(checkpoints, "sam2_video"), "cpu").masks([], "the dog")) == []


@pytest.mark.parametrize("kind", ["silent", "silent sam3"])
def test_masks_are_empty_if_nothing_is_found(checkpoints: dict[str, str], kind: str) -> None:
    name = checkpoints[kind] if kind == "silent sam3" else f"{checkpoints[kind]}+{checkpoints['sam2_video']}"
    masks = list(load_segmenter(name, "cpu").masks(make_frames(10), "the dog"))
    assert len(masks) == 10
    assert not np.any(masks)


def test_detector_gives_boxes_in_pixels(checkpoints: dict[str, str]) -> None:
    detector: Any = load_segmenter(name_of(checkpoints, "sam2_video"), "cpu").detector  # type: ignore[attr-defined]
    seen: list[Any] = []
    detector.model.register_forward_pre_hook(
        lambda _, args, inputs: seen.append(inputs["input_ids"].tolist()), with_kwargs=True
    )
    for words in ("the dog", " The DOG. "):
        np.testing.assert_allclose(detector.boxes(make_frames(1)[0], words), [[0, 0, 40, 24]] * 2, atol=1e-3)
    assert seen == [[[101, 1996, 3899, 1012, 102]]] * 2  # lower case, with a dot at the end


def test_the_score_of_a_box_is_compared_to_the_threshold(
    checkpoints: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    detector: Any = load_segmenter(name_of(checkpoints, "sam2_video"), "cpu").detector  # type: ignore[attr-defined]
    for threshold, count in ((0.72, 2), (0.74, 0)):  # the sigmoid of 1 is 0.731
        monkeypatch.setattr(segmenters, "BOX_THRESHOLD", threshold)
        assert detector.boxes(make_frames(1)[0], "the dog").shape == (count, 4)


def test_detection_is_repeated_until_something_is_found(
    checkpoints: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    segmenter: Any = load_segmenter(name_of(checkpoints, "sam2_video"), "cpu")
    frames = make_frames(14)
    expected = list(segmenter.masks(frames[8:], "the dog"))
    seen = []
    detect = segmenter.detector.boxes

    def boxes(frame: np.ndarray, words: str) -> np.ndarray:
        seen.append(next(number for number, other in enumerate(frames) if (other == frame).all()))
        return detect(frame, words)[: 2 if seen[-1] >= 8 else 0]

    monkeypatch.setattr(segmenter.detector, "boxes", boxes)
    monkeypatch.setattr(segmenters, "DETECT_EVERY", 4)
    masks = list(segmenter.masks(frames, "the dog"))
    assert seen == [0, 4, 8]
    assert not np.any(masks[:8])
    np.testing.assert_array_equal(masks[8:], expected)


def reference_masks(tracker: Any, frames: np.ndarray, boxes: np.ndarray) -> list[np.ndarray]:
    """The union of all objects' masks, of a clip that is given as a whole instead of streamed."""
    model = tracker.model
    video = torch.cat([tracker.preprocess(frame) for frame in frames])
    session = Sam2VideoInferenceSession(video, dtype=torch.float32)
    for number, (left, top, right, bottom) in enumerate(boxes.tolist()):
        corners = [[left / WIDTH * 64, top / HEIGHT * 64], [right / WIDTH * 64, bottom / HEIGHT * 64]]
        prompt = {"point_coords": torch.tensor([[corners]]), "point_labels": torch.tensor([[[2, 3]]])}
        session.add_point_inputs(session.obj_id_to_idx(number), 0, prompt)
        session.obj_with_new_inputs.append(number)
    masks = []
    for output in model.propagate_in_video_iterator(session, start_frame_idx=0):
        logits = torch.nn.functional.interpolate(output.pred_masks, (HEIGHT, WIDTH), mode="bilinear")
        masks.append((logits.amax(0)[0] > 0).numpy())
    return masks


@pytest.mark.parametrize("model_type", TRACKERS)
def test_tracks_the_boxes_as_the_library_does_with_a_whole_clip(
    checkpoints: dict[str, str], model_type: str
) -> None:
    # As many frames as there are pointers: only then a whole clip counts as a stream does.
    frames = make_frames(18)
    tracker = BoxTracker(Path(checkpoints[model_type]), CPU, torch.float32)
    results = []
    for boxes in (BOXES[:1], BOXES[1:], BOXES):
        session = tracker.start(frames[0], 0, boxes)
        masks = [tracker.track(session, frame, number) for number, frame in enumerate(frames)]
        np.testing.assert_array_equal(masks, reference_masks(tracker, frames, boxes))
        results.append(np.array(masks))
    first, second, both = results
    assert (first != second).any(axis=(1, 2))[:4].all()  # the masks depend on the box
    assert (both[0] == first[0] | second[0]).all()


def test_sam3_unites_the_objects_of_the_model(checkpoints: dict[str, str]) -> None:
    frames = make_frames(6)
    segmenter: Any = load_segmenter(checkpoints["sam3_video"], "cpu")
    texts: list[Any] = []
    segmenter.model.detector_model.text_encoder.register_forward_pre_hook(
        lambda _, args, inputs: texts.append(inputs["input_ids"].tolist()), with_kwargs=True
    )
    session = Sam3VideoInferenceSession(dtype=torch.float32)
    session.add_prompt("the dog")
    ids = [101, 1996, 3899, 102]
    session.prompt_input_ids[0] = torch.tensor([ids + [0] * 28])
    session.prompt_attention_masks[0] = torch.tensor([[1] * 4 + [0] * 28])
    for frame, mask in zip(frames, segmenter.masks(frames, "the dog"), strict=True):
        output = segmenter.model(session, frame=segmenter.preprocess(frame))
        logits = torch.stack(list(output.obj_id_to_mask.values()))
        assert len(logits) == 2
        resized = torch.nn.functional.interpolate(logits, (HEIGHT, WIDTH), mode="bilinear")
        np.testing.assert_array_equal(mask, (resized.amax(0)[0] > 0).numpy())
    assert texts == [[ids + [0] * 28]] * 2  # each session encodes the text once


def test_sam3_runs_no_code_from_the_hub(checkpoints: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    used = []

    class Kernel:
        def __getattr__(self, name: str) -> Any:
            used.append(name)
            raise AttributeError(name)

    monkeypatch.setattr(modeling_sam3_video, "cv_utils_kernel", Kernel())  # as if `kernels` had loaded it
    frames = make_frames(3)
    list(load_segmenter(checkpoints["sam3_video"], "cpu").masks(frames, "the dog"))
    assert used == []


def num_bytes(value: Any, seen: set[int]) -> int:
    """The bytes of all tensors in a session, each storage once."""
    if isinstance(value, torch.Tensor):
        storage = value.untyped_storage()
        is_new = storage.data_ptr() not in seen
        seen.add(storage.data_ptr())
        return storage.nbytes() if is_new else 0
    if isinstance(value, dict):
        return sum(num_bytes(part, seen) for part in value.values())
    if isinstance(value, list | tuple):
        return sum(num_bytes(part, seen) for part in value)
    return num_bytes(vars(value), seen) if type(value).__module__.startswith("transformers") else 0


@pytest.mark.parametrize("model_type", ALL)
def test_pruning_bounds_the_memory_and_keeps_the_masks(
    checkpoints: dict[str, str], model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = make_frames(40)
    segmenter = load_segmenter(name_of(checkpoints, model_type), "cpu")
    prune = segmenters.prune_session

    def run(prunes: bool) -> tuple[list[np.ndarray], list[int]]:
        sizes = []

        def observed(session: Any, number: int, config: Any) -> None:
            if prunes:
                prune(session, number, config)
                assert not any(
                    (*session.point_inputs_per_obj.values(), *session.mask_inputs_per_obj.values())
                )
            sizes.append(num_bytes(session, set()))

        monkeypatch.setattr(segmenters, "prune_session", observed)
        return list(segmenter.masks(frames, "the dog")), sizes

    masks, sizes = run(prunes=True)
    unpruned_masks, unpruned_sizes = run(prunes=False)
    np.testing.assert_array_equal(masks, unpruned_masks)
    assert not np.array_equal(masks[20], masks[39])
    # SAM 3 reads the pointers of all conditioning frames: every second frame here, every 16th by default.
    growth = 10 * (HIDDEN + 1) * 4 if model_type == "sam3_video" else 0
    assert sizes[39] - sizes[19] == growth
    assert unpruned_sizes[39] > 8 * sizes[39]


@pytest.mark.parametrize("model_type", TRACKERS)
def test_trackers_compute_in_bf16(checkpoints: dict[str, str], model_type: str) -> None:
    frames = make_frames(3)
    tracker = BoxTracker(Path(checkpoints[model_type]), CPU, torch.bfloat16)
    session = tracker.start(frames[0], 0, BOXES)
    masks = [tracker.track(session, frame, number) for number, frame in enumerate(frames)]
    assert tracker.model.dtype == torch.bfloat16
    assert all(mask.shape == (HEIGHT, WIDTH) and mask.any() for mask in masks)


@pytest.mark.parametrize("size", [(48, 80), (200, 90), (64, 64)])
def test_frames_are_resized_and_normalized(checkpoints: dict[str, str], size: tuple[int, int]) -> None:
    frame = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
    pixels = FramePreprocessor(Path(checkpoints["sam2_video"]), CPU, torch.float32)(frame)
    assert pixels.shape == (1, 3, 64, 64)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    levels = (pixels[0].permute(1, 2, 0).numpy() * std + mean) * 255
    expected = np.asarray(Image.fromarray(frame).resize((64, 64), Image.Resampling.BILINEAR), np.float32)
    assert np.abs(levels - expected).max() < 1.01  # one level, by rounding


def test_a_detector_or_tracker_alone_is_paired_with_the_default(
    checkpoints: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segmenters, "DEFAULT_DETECTOR", checkpoints["detector"])
    monkeypatch.setattr(segmenters, "DEFAULT_TRACKER", checkpoints["sam2_video"])
    for kind, tracker in (("detector", "Sam2VideoModel"), ("edgetam_video", "EdgeTamVideoModel")):
        check_segmenter(checkpoints[kind])
        segmenter: Any = load_segmenter(checkpoints[kind], "cpu")
        assert type(segmenter.tracker.model).__name__ == tracker
        assert next(segmenter.masks(make_frames(1), "the dog")).any()


def test_the_default_is_a_pair_of_hub_ids() -> None:
    detector, tracker = segmenters.DEFAULT_SEGMENTER.split("+")
    assert (detector, tracker) == (segmenters.DEFAULT_DETECTOR, segmenters.DEFAULT_TRACKER)
    with pytest.raises(
        UserError, match=rf"`segmenter` {detector}: not a local folder, and cannot be read from"
    ):
        check_segmenter(segmenters.DEFAULT_SEGMENTER)  # the tests are offline


def test_checking_does_not_import_torch(checkpoints: dict[str, str]) -> None:
    code = (
        "import sys; from rvedit.editing.segmenters import check_segmenter; check_segmenter(sys.argv[1]); "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, name_of(checkpoints, "sam2_video")], check=True)


def save_config(folder: Path, config: Any) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return str(folder)


def error_of(call: Any, name: str) -> str:
    with pytest.raises(UserError) as raised:
        call(name)
    message = str(raised.value)
    assert "\n" not in message
    assert message.startswith("`segmenter` ")
    return message


def test_names_that_are_not_found(checkpoints: dict[str, str], tmp_path: Path) -> None:
    for name in ("dog", str(tmp_path / "missing"), "", "./no/where", f"{checkpoints['detector']}+"):
        assert "no such folder: give a local folder or a hub id" in error_of(check_segmenter, name)
    assert "owner/model: not a local folder, and cannot be read" in error_of(check_segmenter, "owner/model")
    assert "the folder has no config.json" in error_of(check_segmenter, str(tmp_path))


def test_models_that_are_not_supported(checkpoints: dict[str, str], tmp_path: Path) -> None:
    detector, tracker, sam3 = (checkpoints[kind] for kind in ("detector", "sam2_video", "sam3_video"))
    owl = save_config(tmp_path / "owl", {"model_type": "owlvit"})
    image = save_config(tmp_path / "image", {"model_type": "sam2"})
    for name, found in (
        (owl, "owlvit"),
        (f"{owl}+{tracker}", "owlvit and sam2_video"),
        (f"{detector}+{image}", "grounding-dino and sam2"),
        (f"{tracker}+{tracker}", "sam2_video and sam2_video"),
        (f"{detector}+{sam3}", "grounding-dino and sam3_video"),
        (f"{sam3}+{sam3}", "sam3_video and sam3_video"),
        (f"{detector}+{tracker}+{tracker}", "grounding-dino and sam2_video and sam2_video"),
        (save_config(tmp_path / "empty", {}), "None"),
    ):
        message = error_of(check_segmenter, name)
        assert message == f"`segmenter` {name}: found {found}: {segmenters._USAGE}"
        assert error_of(load_segmenter, name) == message
    for number, damaged in enumerate(("{", "[]", '{"vision_config": 3}')):
        name = save_config(tmp_path / str(number), damaged)
        assert "config.json is not the config of a model" in error_of(check_segmenter, name)


def test_a_backbone_of_timm_needs_timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {
        "model_type": "edgetam_video",
        "vision_config": {"backbone_config": {"model_type": "timm_wrapper"}},
    }
    name = save_config(tmp_path / "edgetam", config)
    monkeypatch.setattr("importlib.util.find_spec", lambda package: object())
    check_segmenter(name)
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    assert error_of(check_segmenter, name) == f"`segmenter` {name}: needs the package timm: pip install timm"


def test_files_that_are_missing_or_damaged(tmp_path: Path) -> None:
    name = str(save_tracker(tmp_path / "tracker", "sam2_video"))
    weights = tmp_path / "tracker" / "model.safetensors"
    torch.save({}, weights.with_name("pytorch_model.bin"))  # never read

    def load(name: str) -> Any:
        return segmenters._load(BoxTracker, name, CPU, torch.float32)

    load(name)
    (tmp_path / "tracker" / "preprocessor_config.json").rename(tmp_path / "kept")
    assert f"{name}: cannot be loaded: " in error_of(load, name)
    (tmp_path / "kept").rename(tmp_path / "tracker" / "preprocessor_config.json")
    weights.write_bytes(weights.read_bytes()[:1000])
    assert f"{name}: cannot be loaded: " in error_of(load, name)
    weights.unlink()
    assert "cannot be loaded: Error no file named model.safetensors" in error_of(load, name)


@pytest.mark.slow
def test_a_region_in_words_from_the_command_line(checkpoints: dict[str, str], tmp_path: Path) -> None:
    """The mask is the segmenter's own; if nothing is found, the command ends before anything is written."""
    write_clip(tmp_path / "clip.mp4", make_frames(6), 10)
    edit = ("edit", "clip.mp4", "make it sepia", "--steps", 1, "--region", "the dog", "--segmenter")
    found, nothing = (checkpoints[kind] + "+" + checkpoints["sam2_video"] for kind in ("detector", "silent"))
    rvedit(*edit, found, "--save-mask", "mask.mkv", "--from", "2f", cwd=tmp_path, check=0)
    with VideoReader(tmp_path / "clip.mp4") as reader:
        frames = np.stack([timed.frame for timed in reader])
    expected = np.stack(list(load_segmenter(found, "cpu").masks(frames[2:], "the dog")))
    with VideoReader(tmp_path / "mask.mkv") as reader:
        mask = np.stack([timed.frame[..., 0] for timed in reader]) > 127
    assert not mask[:2].any()
    assert expected.any()
    assert (mask[2:] != expected).mean() < 0.03, "but for the encoder's loss"
    (tmp_path / "clip_edited.mp4").unlink()
    done = rvedit(*edit, nothing, cwd=tmp_path, check=2)
    assert done.stderr.splitlines() == [
        'rvedit: --region "the dog": not found in the clip: use other words, or a box'
    ]
    assert not (tmp_path / "clip_edited.mp4").exists()
