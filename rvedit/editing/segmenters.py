"""Segmenters: masks over a clip of what words name, by transformers' own models.

A segmenter is SAM 3, which finds and tracks objects in every frame, or a pair of a detector (Grounding DINO:
words to boxes) and a tracker (SAM 2 or EdgeTAM: boxes to masks, frame after frame).

Torch and transformers are imported where they are needed: `check_segmenter` does without them.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rvedit.io.errors import UserError
from rvedit.io.video.clip import Frames

if TYPE_CHECKING:
    import torch
    from torch import Tensor

DEFAULT_DETECTOR, DEFAULT_TRACKER = "IDEA-Research/grounding-dino-tiny", "facebook/sam2.1-hiera-tiny"
DEFAULT_SEGMENTER = f"{DEFAULT_DETECTOR}+{DEFAULT_TRACKER}"
"""Grounding DINO tiny and SAM 2.1 tiny: both Apache-2.0, 172 M and 39 M parameters, 0.85 GB in fp32.

SAM 3 (`facebook/sam3`) has 860 M parameters, Meta's own license, and is gated. EdgeTAM
(`yonigozlan/EdgeTAM-hf`, Apache-2.0) has 14 M, but needs timm for its backbone.
"""

BOX_THRESHOLD = 0.35
"""Least score of a detected box, as in Grounding DINO's demo."""
DETECT_EVERY = 8
"""Number of frames from one detection to the next, as long as nothing has been found."""

_KINDS = {
    "sam3_video": "sam3",
    "grounding-dino": "detector",
    "sam2_video": "tracker",
    "edgetam_video": "tracker",
}
_USAGE = (
    "give a model of type sam3_video, or DETECTOR+TRACKER of the types grounding-dino and sam2_video or "
    "edgetam_video"
)


class Segmenter(Protocol):
    """A model that finds what words name in a clip."""

    def masks(self, frames: Iterable[Frames], words: str) -> Iterator[NDArray[np.bool_]]:
        """Yield one mask (h, w) per frame (h, w, 3) uint8 of a clip: the union of all objects found.

        Frames have one size. Each mask is yielded before the next frame is read.
        """


def check_segmenter(name: str) -> None:
    """Raise UserError for a model that is not found or not supported, without reading weights."""
    _resolve(name)


def load_segmenter(name: str = DEFAULT_SEGMENTER, device: str | None = None) -> Segmenter:
    """Load a segmenter.

    Args:
        name: a folder or hub id of SAM 3, or `DETECTOR+TRACKER`, each a folder or hub id. A detector or a
            tracker alone is paired with the default one.
        device: by default a GPU if there is one. SAM 3 and trackers compute in bf16 on a GPU. Grounding DINO
            always computes in fp32: it sees few frames, and rounding would move its boxes.

    Raises UserError for a model that is not found, not supported or incomplete, and for an unusable device.
    """
    import torch

    from rvedit.pipelines.loading import pick_device, pick_dtype

    models = _resolve(name)
    torch_device = pick_device(device)
    dtype = pick_dtype(None, torch_device)
    if "sam3" in models:
        return _load(Sam3Segmenter, models["sam3"], torch_device, dtype)
    detector = _load(BoxDetector, models["detector"], torch_device, torch.float32)
    return DetectAndTrackSegmenter(detector, _load(BoxTracker, models["tracker"], torch_device, dtype))


def _load(model_class: Any, name: str, device: torch.device, dtype: torch.dtype) -> Any:
    from safetensors import SafetensorError

    from rvedit.pipelines.checkpoints import find_checkpoint

    folder = find_checkpoint(name, "`segmenter`")
    try:
        return model_class(folder, device, dtype)
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        raise UserError(f"`segmenter` {name}: cannot be loaded: {_first_line(error)}") from None


def _resolve(name: str) -> dict[str, str]:
    """Return the name of each model: of `sam3`, or of `detector` and `tracker`. Raises UserError."""
    parts = [name] if Path(name).expanduser().is_dir() else name.split("+")
    model_types = [_model_type(part) for part in parts]
    kinds = [_KINDS.get(model_type, "unsupported") for model_type in model_types]
    models = dict(zip(kinds, parts, strict=True))
    is_pair = set(kinds) <= {"detector", "tracker"}
    if len(models) < len(parts) or not (is_pair or kinds == ["sam3"]):
        raise UserError(f"`segmenter` {name}: found {' and '.join(model_types)}: {_USAGE}")
    return {"detector": DEFAULT_DETECTOR, "tracker": DEFAULT_TRACKER, **models} if is_pair else models


def _model_type(name: str) -> str:
    """Return the `model_type` in a model's config.json. Raises UserError if there is none, or no timm."""
    folder = Path(name).expanduser()
    path = folder / "config.json" if name and folder.is_dir() else _download_config(name)
    if not path.is_file():
        raise UserError(f"`segmenter` {name}: the folder has no config.json: {_USAGE}")
    try:
        config = json.loads(path.read_text("utf-8"))
        model_type = str(config.get("model_type"))
        backbone = (config.get("vision_config") or {}).get("backbone_config") or {}
        needs_timm = backbone.get("model_type") == "timm_wrapper"
    except (ValueError, AttributeError):
        raise UserError(f"`segmenter` {name}: config.json is not the config of a model: {_USAGE}") from None
    if needs_timm and importlib.util.find_spec("timm") is None:
        raise UserError(f"`segmenter` {name}: needs the package timm: pip install timm")
    return model_type


def _download_config(name: str) -> Path:
    """Return the config.json of a hub id, from the cache or the hub. Raises UserError."""
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", name):
        raise UserError(f"`segmenter` {name}: no such folder: give a local folder or a hub id owner/name")
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, "config.json"))
    except Exception as error:
        reason = _first_line(error)
        if type(error).__name__ == "GatedRepoError":
            reason = f"access is gated: accept the terms on https://huggingface.co/{name} and set HF_TOKEN"
        raise UserError(
            f"`segmenter` {name}: not a local folder, and cannot be read from the hub: {reason}"
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class DetectAndTrackSegmenter:
    """Detect boxes in one frame, then track the object in each box.

    The first frame with a detection counts: masks before it are empty, and objects that appear after it are
    not found.
    """

    def __init__(self, detector: BoxDetector, tracker: BoxTracker) -> None:
        self.detector, self.tracker = detector, tracker

    def masks(self, frames: Iterable[Frames], words: str) -> Iterator[NDArray[np.bool_]]:
        """See `Segmenter.masks`."""
        session = None
        for number, frame in enumerate(frames):
            if session is None and number % DETECT_EVERY == 0:
                boxes = self.detector.boxes(frame, words)
                session = self.tracker.start(frame, number, boxes) if len(boxes) else None
            if session is None:
                yield np.zeros(frame.shape[:2], bool)
            else:
                yield self.tracker.track(session, frame, number)


class BoxDetector:
    """Grounding DINO."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        from transformers import AutoImageProcessor, AutoTokenizer, GroundingDinoProcessor
        from transformers import GroundingDinoForObjectDetection as GroundingDino

        # By PIL, so that results do not depend on whether torchvision is installed.
        image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
        self.processor = GroundingDinoProcessor(image_processor, AutoTokenizer.from_pretrained(folder))
        model = GroundingDino.from_pretrained(folder, use_safetensors=True, dtype=dtype)
        self.model = model.to(device).eval()

    def boxes(self, frame: Frames, words: str) -> NDArray[np.float32]:
        """Return boxes (n, 4) of what the words name in a frame: left, top, right and bottom in pixels."""
        import torch
        from PIL import Image

        height, width = frame.shape[:2]
        text = words.strip().rstrip(".").lower() + "."  # the form of the captions it was trained on
        inputs = self.processor(images=Image.fromarray(frame), text=text, return_tensors="pt")
        inputs = inputs.to(self.model.device)
        with torch.inference_mode():
            outputs = self.model(**inputs)
        detected = self.processor.post_process_grounded_object_detection(
            outputs, inputs["input_ids"], threshold=BOX_THRESHOLD, target_sizes=[(height, width)]
        )
        boxes: NDArray[np.float32] = detected[0]["boxes"].cpu().numpy()
        return boxes.clip(0, np.array([width, height, width, height], np.float32))


class BoxTracker:
    """SAM 2 or EdgeTAM."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        from transformers import AutoModel

        model = AutoModel.from_pretrained(folder, use_safetensors=True, dtype=dtype)
        self.model = model.to(device).eval()
        self.preprocess = FramePreprocessor(folder, device, dtype)

    def start(self, frame: Frames, number: int, boxes: NDArray[np.float32]) -> Any:
        """Return a session that tracks the object in each box (n, 4), from the frame of this number on."""
        import torch
        from transformers import Sam2VideoInferenceSession  # EdgeTAM takes it too

        session = Sam2VideoInferenceSession(**_placement(self.model))
        height, width = self.preprocess.size
        scale = np.array([width / frame.shape[1], height / frame.shape[0]], np.float32)
        labels = torch.tensor([[[2, 3]]], dtype=torch.int32)  # of a box's corners
        for object_id, corners in enumerate(boxes.reshape(-1, 2, 2) * scale):
            prompt = {"point_coords": torch.from_numpy(corners)[None, None], "point_labels": labels}
            session.add_point_inputs(session.obj_id_to_idx(object_id), number, prompt)
        session.obj_with_new_inputs = list(range(len(boxes)))
        return session

    def track(self, session: Any, frame: Frames, number: int) -> NDArray[np.bool_]:
        """Return the mask (h, w) of a frame; frames come in the order of their numbers, without gaps."""
        output = self.model(session, frame=self.preprocess(frame), frame_idx=number)
        prune_session(session, number, self.model.config)
        return _union(output.pred_masks, frame)


class Sam3Segmenter:
    """SAM 3 in its streaming mode."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        from transformers import AutoTokenizer, Sam3VideoModel

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        # If these were not 0, it would run code from the hub wherever the package `kernels` is installed.
        no_kernels = {"det_nms_thresh": 0.0, "fill_hole_area": 0}
        model = Sam3VideoModel.from_pretrained(folder, use_safetensors=True, dtype=dtype, **no_kernels)
        self.model = model.to(device).eval()
        self.preprocess = FramePreprocessor(folder, device, dtype)

    def masks(self, frames: Iterable[Frames], words: str) -> Iterator[NDArray[np.bool_]]:
        """See `Segmenter.masks`."""
        from transformers import Sam3VideoInferenceSession

        session = Sam3VideoInferenceSession(**_placement(self.model))
        length = self.model.config.detector_config.text_config.max_position_embeddings
        tokens = self.tokenizer(
            words, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).to(self.model.device)
        prompt = session.add_prompt(words)
        session.prompt_input_ids[prompt] = tokens["input_ids"]
        session.prompt_attention_masks[prompt] = tokens["attention_mask"]
        for number, frame in enumerate(frames):
            output = self.model(session, frame=self.preprocess(frame), frame_idx=number)
            prune_session(session, number, self.model.config.tracker_config)
            yield _union(output.obj_id_to_mask.values(), frame)


class FramePreprocessor:
    """Resize and normalize frames as the image processors of SAM 2, EdgeTAM and SAM 3 do.

    Those need torchvision, which this package does not depend on.
    """

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        import torch
        from transformers import ImageProcessingMixin

        config, _ = ImageProcessingMixin.get_image_processor_dict(folder)
        self.size = (config["size"]["height"], config["size"]["width"])
        self.mean, self.std = torch.tensor([config["image_mean"], config["image_std"]])[..., None, None]
        self.device, self.dtype = device, dtype

    def __call__(self, frame: Frames) -> Tensor:
        """Return a frame (h, w, 3) as pixel values (1, 3, *size)."""
        import torch
        import torch.nn.functional as F

        pixels = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)[None]
        resized = F.interpolate(pixels, self.size, mode="bilinear", antialias=True, align_corners=False)
        return ((resized.float() / 255 - self.mean) / self.std).to(self.device, self.dtype)


def _placement(model: Any) -> dict[str, Any]:
    """Return the arguments of a session that keeps its whole state where the model is."""
    devices = ("inference_device", "inference_state_device", "video_storage_device")
    return {**dict.fromkeys(devices, model.device), "dtype": model.dtype}


def _union(masks: Iterable[Tensor], frame: Frames) -> NDArray[np.bool_]:
    """Return the union of objects' mask logits (1, h', w') as a mask of the frame's size (h, w)."""
    import torch.nn.functional as F

    size = frame.shape[:2]
    union = np.zeros(size, bool)
    for mask in masks:
        logits = F.interpolate(mask[None].float(), size, mode="bilinear", align_corners=False)
        union |= (logits[0, 0] > 0).cpu().numpy()
    return union


def prune_session(session: Any, number: int, config: Any) -> None:
    """Delete from a session what the tracker will not read after the frame of this number.

    To be called after each frame. The tracker reads the memory features of the last `num_maskmem` - 1 frames
    and the object pointers of the last `max_object_pointers_in_encoder` - 1. Of conditioning frames (those
    with a prompt and, in SAM 3, those that a detection confirms) it reads all pointers, and the features of
    the last `max_cond_frame_num`, or of all if that is -1. The masks of later frames stay the same.
    """
    features, masks = ("maskmem_features", "maskmem_pos_enc"), ("pred_masks", "high_res_masks")
    first_features = number + 2 - config.num_maskmem  # the first frame whose features are still read
    first = min(first_features, number + 2 - config.max_object_pointers_in_encoder)
    session.processed_frames[number] = None  # the key stays: SAM 3 reads how many there are
    for tracked in session.frames_tracked_per_obj.values():
        tracked.pop(first - 1, None)
    for outputs in session.output_dict_per_obj.values():
        tracked, conditioning = outputs["non_cond_frame_outputs"], outputs["cond_frame_outputs"]
        tracked.pop(first - 1, None)
        _delete(tracked, first_features - 1, features)
        _delete(tracked, number, masks)
        _delete(conditioning, number, masks)
        limit = config.max_cond_frame_num
        for old in sorted(conditioning)[:-limit] if limit > 0 else ():
            if old < first_features:
                _delete(conditioning, old, features)
    for prompts in (*session.point_inputs_per_obj.values(), *session.mask_inputs_per_obj.values()):
        prompts.pop(number, None)
    # SAM 3 keeps, and copies in every frame, statistics of all frames that it does not read when streaming.
    for statistics in (
        "obj_id_to_tracker_score_frame_wise", "suppressed_obj_ids", "unmatched_frame_inds",
        "overlap_pair_to_frame_inds",
    ):  # fmt: skip
        getattr(session, statistics, {}).clear()


def _delete(outputs: dict[int, dict[str, Any]], number: int, keys: tuple[str, ...]) -> None:
    for key in keys:
        outputs.get(number, {}).pop(key, None)
