"""Render the pictures of the documentation.

`python -m rvedit.playground.demo assets/park.mp4` writes the README's clip, with sound, and `python -m
rvedit.playground.demo assets/playground.jpg` a sheet of frames.
"""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from rvedit.playground.scene import Scene, Thing
from rvedit.playground.world import FRAME_RATE, render, sample_triplet

PARK = Scene(
    background="meadow",
    horizon=0.6,
    pan=0.01,
    hills_phase=1.0,
    things=(Thing("dog", x=0.3, y=0.7, radius=0.24, drift=0.01, bob=0.015),),
)
NUM_FRAMES = 33
SIZE = 512
SAMPLE_RATE = 44_100
SHOWN = (7, 25, 46, 52, 43)
SHEET_SIZE = 192


def melody(seconds: float) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Return a melody of plucked tones, (1, samples) in [-1, 1]."""
    notes = (523.25, 659.25, 783.99, 659.25, 587.33, 698.46, 880.0, 783.99)
    time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    note = (time * 4).astype(int)
    phase = time * 4 - note
    pitch = np.array(notes)[note % len(notes)]
    return (0.3 * np.sin(2 * np.pi * pitch * time) * np.exp(-5 * phase)).astype(np.float32)[None]


def write_demo(path: Path) -> None:
    """Render the clip into an mp4 with an AAC track."""
    frames = render(PARK, NUM_FRAMES, SIZE, SIZE)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=FRAME_RATE, options={"crf": "16"})
        video.width, video.height, video.pix_fmt = SIZE, SIZE, "yuv420p"
        audio = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        for frame in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(video.encode(None))
        sound = av.AudioFrame.from_ndarray(melody(NUM_FRAMES / FRAME_RATE), format="fltp", layout="mono")
        sound.sample_rate, sound.time_base = SAMPLE_RATE, Fraction(1, SAMPLE_RATE)
        container.mux(audio.encode(sound))
        container.mux(audio.encode(None))


def write_sheet(path: Path) -> None:
    """Write frames of the triplets of `SHOWN`; each row has another realism: 0, 0.5 and 1."""
    rows = []
    for realism in (0.0, 0.5, 1.0):
        scenes = (sample_triplet(3, index, realism=realism).source for index in SHOWN)
        frames = [render(scene, 1, SHEET_SIZE, SHEET_SIZE)[0] for scene in scenes]
        rows.append(np.concatenate(frames, axis=1))
    Image.fromarray(np.concatenate(rows)).save(path, quality=82)


if __name__ == "__main__":
    output = Path(sys.argv[1])
    (write_demo if output.suffix == ".mp4" else write_sheet)(output)
