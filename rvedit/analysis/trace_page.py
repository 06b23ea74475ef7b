"""A reasoning trace as a self-contained page, and as an overlay video."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rvedit.analysis.reasoning import ReasoningTrace
from rvedit.io.frames import Frames
from rvedit.io.pages import jpeg_url, write_page
from rvedit.io.tiles import tiled
from rvedit.models.autoencoder import FRAMES_PER_LATENT

_HEAT = np.array(  # low to high: dark violet, red, orange, pale yellow; lightness increases
    [[20, 11, 52], [87, 16, 110], [159, 42, 99], [222, 73, 75], [250, 142, 9], [252, 255, 164]], np.float32
)
_TILE_WIDTH = 256
"""Pixels of the video's tiles."""
MAX_MAPS = 22
"""Maps of the video, unless there are more concepts."""


def write_trace_page(path: Path, trace: ReasoningTrace, model: str) -> None:
    """Write the page."""
    source = trace.source
    shown = sorted({*range(0, len(source), FRAMES_PER_LATENT), len(source) - 1})
    data = {
        "instruction": trace.instruction,
        "model": model,
        "depth": trace.routing_depth,
        "about": _about(trace),
        "numSteps": trace.num_steps,
        "blocks": sorted({reading.block for reading in trace.readings}),
        "steps": sorted({reading.step for reading in trace.readings}),
        "source": [jpeg_url(Image.fromarray(source[index]), 88) for index in shown],
        "edit": [jpeg_url(Image.fromarray(trace.edit[index]), 88) for index in shown],
        "frames": [index + 1 for index in shown],
        "readings": {
            f"{reading.block}/{reading.step}": [_packed(name, m) for name, m in reading.maps.items()]
            for reading in trace.readings
        },
        "heat": _HEAT.astype(int).tolist(),
    }
    write_page(path, "rvedit.analysis", "trace.html", data)


def _about(trace: ReasoningTrace) -> str:
    """Return which tokens the blocks attend to, what concepts are, and which words are not read."""
    deep = "the editing tokens, the source's visual tokens and the words"
    if trace.routing_depth == 0:
        text = f"All blocks read {deep}."
    elif trace.routing_depth == trace.num_blocks:
        text = "All blocks read the editing tokens alone."
    else:
        text = (
            f"Blocks up to L_s = {trace.routing_depth} read the editing tokens alone, deeper ones {deep}; "
            "“text padding” are the zeros that pad X_l."
        )
    if trace.concepts:
        text += (
            " Concepts are words that the edit does not read: their maps compare each place's attention "
            "output with their values, and sum to 100% over the concepts."
        )
    unread = trace.instruction.split()[len(trace.words) :] if trace.words else []
    return text + (f" The text encoder did not read: {' '.join(unread)}." if unread else "")


def overlay_frames(trace: ReasoningTrace) -> Iterator[Frames]:
    """Yield frames (y, x, 3) of a grid: source, edit, and each map over the edit, mean over deep blocks.

    Each map is scaled from its minimum to its maximum over the clip.
    """
    volumes = trace.mean_maps()
    if len(volumes) > MAX_MAPS:  # of a long instruction: concepts, and the words whose attention varies most
        others = [name for name in volumes if name not in trace.concepts]
        uneven = sorted(others, key=lambda name: -float(volumes[name].std() / volumes[name].mean()))
        kept = [*trace.concepts, *uneven[: max(0, MAX_MAPS - len(trace.concepts))]]
        volumes = {name: m for name, m in volumes.items() if name in kept}
    scaled = {name: _scaled(volume) for name, volume in volumes.items()}
    for index, source in enumerate(trace.source):
        latent = -(-index // FRAMES_PER_LATENT)
        pictures = [("source", source), ("edit", trace.edit[index])]
        for name, (low, high, shares) in scaled.items():
            heat = heat_over(trace.edit[index], shares[latent])
            pictures.append((f"{name}  {low:.1%} to {high:.1%}", heat))
        yield tiled(pictures, _TILE_WIDTH, columns=4)


def heat_over(frame: Frames, share: NDArray[np.float32]) -> Frames:
    """Return a frame in dim gray under the colors of a map (rows, columns) of values from 0 to 1."""
    height, width = frame.shape[:2]
    grown = Image.fromarray(share.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    values = np.clip(np.asarray(grown), 0, 1)
    colors = np.stack(
        [np.interp(values, np.linspace(0, 1, len(_HEAT)), _HEAT[:, channel]) for channel in range(3)], axis=-1
    )
    gray = frame.astype(np.float32).mean(axis=-1, keepdims=True)
    return np.asarray((0.45 * gray + 0.55 * colors).round(), np.uint8)


def _packed(name: str, volume: NDArray[np.float32]) -> dict[str, object]:
    """Return a map as bytes."""
    low, high, shares = _scaled(volume)
    data = base64.b64encode(np.round(shares * 255).astype(np.uint8).tobytes()).decode()
    return {"name": name, "low": low, "high": high, "shape": volume.shape, "data": data}


def _scaled(volume: NDArray[np.float32]) -> tuple[float, float, NDArray[np.float32]]:
    """Return the minimum and the maximum of a map, and the map scaled to 0 ... 1."""
    low, high = float(volume.min()), float(volume.max())
    return low, high, (volume - low) / max(high - low, 1e-9)
