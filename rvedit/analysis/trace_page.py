"""A reasoning trace as a self-contained page, and as an overlay video."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from importlib.resources import files
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rvedit.analysis.reasoning import ReasoningTrace
from rvedit.analysis.tiles import tiled
from rvedit.editing.windows import GROUP
from rvedit.io.frames import Frames
from rvedit.io.manifest import write_text

_DATA = "/*DATA*/null"
_HEAT = np.array(  # from nothing to most: dark violet, red, orange, pale yellow; rises in lightness
    [[20, 11, 52], [87, 16, 110], [159, 42, 99], [222, 73, 75], [250, 142, 9], [252, 255, 164]], np.float32
)
_TILE_WIDTH = 256
"""Pixels of the video's tiles."""
MOST_MAPS = 22
"""Of the video."""


def write_trace_page(
    path: Path,
    trace: ReasoningTrace,
    source: Frames,
    instruction: str,
    model: str,
    routing_depth: int,
    num_blocks: int,
    cut: Sequence[str] = (),
) -> None:
    """Write the page; it needs no network, and no other file. `cut` are words that the text encoder did not
    read.
    """
    shown = [*range(0, len(source), GROUP)]
    if shown[-1] != len(source) - 1:  # a last group that is not whole
        shown.append(len(source) - 1)
    data = {
        "instruction": instruction,
        "model": model,
        "depth": routing_depth,
        "about": _about(routing_depth, num_blocks, cut),
        "numSteps": trace.num_steps,
        "blocks": sorted({reading.block for reading in trace.readings}),
        "steps": trace.steps,
        "source": [_picture(source[index]) for index in shown],
        "edit": [_picture(trace.edit[index]) for index in shown],
        "frames": [index + 1 for index in shown],
        "readings": {
            f"{reading.block}/{reading.step}": [_packed(name, m) for name, m in reading.maps.items()]
            for reading in trace.readings
        },
        "heat": _HEAT.astype(int).tolist(),
    }
    template = files("rvedit.analysis").joinpath("trace.html").read_text(encoding="utf-8")
    # No tag inside an instruction may act as one.
    encoded = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    write_text(path, template.replace(_DATA, encoded))


def _about(routing_depth: int, num_blocks: int, cut: Sequence[str]) -> str:
    deep = "the editing tokens, the source's visual tokens and the words"
    if routing_depth == 0:
        text = f"All blocks read {deep}."
    elif routing_depth == num_blocks:
        text = "All blocks read the editing tokens alone."
    else:
        text = (
            f"Blocks up to L_s = {routing_depth} read the editing tokens alone, deeper ones {deep}; "
            "“behind the text” is what X_l is filled up with."
        )
    return text + (f" The text encoder did not read: {' '.join(cut)}." if cut else "")


def overlay_frames(trace: ReasoningTrace, source: Frames, routing_depth: int) -> Iterator[Frames]:
    """Frames (y, x, 3) of a grid: source, edit, and over the edit each reading, mean over deep blocks.

    Each map is stretched from its least to its most over the clip.
    """
    volumes = trace.mean_maps(routing_depth)
    if len(volumes) > MOST_MAPS:  # of a long instruction: the words that are read most unevenly
        uneven = sorted(volumes, key=lambda name: -float(volumes[name].std() / volumes[name].mean()))
        volumes = {name: m for name, m in volumes.items() if name in uneven[:MOST_MAPS]}
    ranges = {name: (float(m.min()), float(m.max())) for name, m in volumes.items()}
    for index in range(len(source)):
        latent = -(-index // GROUP)
        pictures = [("source", source[index]), ("edit", trace.edit[index])]
        for name, volume in volumes.items():
            low, high = ranges[name]
            share = (volume[latent] - low) / max(high - low, 1e-9)
            pictures.append((f"{name}  {low:.1%} to {high:.1%}", heat_over(trace.edit[index], share)))
        yield tiled(pictures, _TILE_WIDTH, columns=4)


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


def _packed(name: str, volume: NDArray[np.float32]) -> dict[str, object]:
    """A map in bytes, from its least to its most."""
    low, high = float(volume.min()), float(volume.max())
    levels = np.round((volume - low) / max(high - low, 1e-9) * 255).astype(np.uint8)
    return {
        "name": name,
        "low": low,
        "high": high,
        "shape": volume.shape,
        "data": base64.b64encode(levels.tobytes()).decode(),
    }
