"""A reasoning trace as a self-contained page, and as an overlay video."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from importlib.resources import files
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from rvedit.analysis.reasoning import ReasoningTrace
from rvedit.data.manifest import write_text
from rvedit.video_tensors import Frames
from rvedit.windows import GROUP

_DATA = "/*DATA*/null"
_HEAT = np.array(  # from nothing to most: dark violet, red, orange, pale yellow; rises in lightness
    [[20, 11, 52], [87, 16, 110], [159, 42, 99], [222, 73, 75], [250, 142, 9], [252, 255, 164]], np.float32
)
_TILE_WIDTH, _CAPTION = 256, 22
"""Pixels of the video's tiles: width at least, and of the line of text above each."""


def write_trace_page(
    path: Path, trace: ReasoningTrace, source: Frames, instruction: str, model: str, routing_depth: int
) -> None:
    """Write the page; it needs no network, and no other file."""
    latent_frames = len(next(iter(trace.readings[0].maps.values())))
    shown = [min(index * GROUP, len(source) - 1) for index in range(latent_frames)]
    data = {
        "instruction": instruction,
        "model": model,
        "depth": routing_depth,
        "numSteps": trace.num_steps,
        "words": trace.words,
        "blocks": sorted({reading.block for reading in trace.readings}),
        "steps": trace.steps,
        "source": [_picture(source[index]) for index in shown],
        "edit": [_picture(trace.edit[index]) for index in shown],
        "frames": [index + 1 for index in shown],
        "readings": {
            f"{reading.block}/{reading.step}": {name: _packed(m) for name, m in reading.maps.items()}
            for reading in trace.readings
        },
        "heat": _HEAT.astype(int).tolist(),
    }
    template = files("rvedit.analysis").joinpath("trace.html").read_text(encoding="utf-8")
    # No tag inside an instruction may act as one.
    encoded = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    write_text(path, template.replace(_DATA, encoded))


def overlay_frames(trace: ReasoningTrace, source: Frames, routing_depth: int) -> Iterator[Frames]:
    """Frames (y, x, 3) of a grid: source, edit, and over the edit each reading, mean over deep blocks.

    Each map is stretched from its least to its most over the clip.
    """
    names = trace.mean_maps(routing_depth)
    ranges = {name: (float(m.min()), float(m.max())) for name, m in names.items()}
    height, width = source.shape[1:3]
    scale = max(1, round(_TILE_WIDTH / width))
    size = (width * scale, height * scale)
    tiles = 2 + len(names)
    columns = min(tiles, 4 if width <= 2 * height else 3)
    rows = -(-tiles // columns)
    font = ImageFont.load_default(14)
    for index in range(len(source)):
        latent = -(-index // GROUP)
        pictures = [("source", source[index]), ("edit", trace.edit[index])]
        for name, volume in names.items():
            low, high = ranges[name]
            share = (volume[latent] - low) / max(high - low, 1e-9)
            caption = f"{name}  {low:.1%} to {high:.1%}"
            pictures.append((caption, heat_over(trace.edit[index], share)))
        canvas = Image.new("RGB", (columns * size[0], rows * (size[1] + _CAPTION)), (24, 26, 29))
        draw = ImageDraw.Draw(canvas)
        for place, (caption, picture) in enumerate(pictures):
            x, y = place % columns * size[0], place // columns * (size[1] + _CAPTION)
            draw.text((x + 4, y + 2), caption, fill=(240, 240, 240), font=font)
            resized = Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC)
            canvas.paste(resized, (x, y + _CAPTION))
        yield np.asarray(canvas)


def heat_over(frame: Frames, share: NDArray[np.float32]) -> Frames:
    """A frame in dim grey, under the colours of a map of shares (rows, columns) in 0 ... 1."""
    height, width = frame.shape[:2]
    grown = Image.fromarray(share.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    values = np.clip(np.asarray(grown), 0, 1)
    colors = np.stack(
        [np.interp(values, np.linspace(0, 1, len(_HEAT)), _HEAT[:, channel]) for channel in range(3)], axis=-1
    )
    grey = frame.astype(np.float32).mean(axis=-1, keepdims=True)
    return np.asarray((0.45 * grey + 0.55 * colors).round(), np.uint8)


def _picture(frame: Frames) -> str:
    buffer = BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _packed(volume: NDArray[np.float32]) -> dict[str, object]:
    """A map in bytes, from its least to its most."""
    low, high = float(volume.min()), float(volume.max())
    levels = np.round((volume - low) / max(high - low, 1e-9) * 255).astype(np.uint8)
    return {
        "low": low,
        "high": high,
        "mean": float(volume.mean()),
        "shape": volume.shape,
        "data": base64.b64encode(levels.tobytes()).decode(),
    }
