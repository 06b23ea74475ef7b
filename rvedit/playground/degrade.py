"""What a camera and a codec do to a clip: sensor noise and JPEG compression."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from rvedit.io.video.clip import Frames


def degrade(frames: Frames, rng: np.random.Generator, strength: float) -> Frames:
    """Return a clip (t, h, w, 3) with sensor noise and compression; the same clip at strength 0.

    The amounts of both are drawn uniformly from 0 to `strength`, which is 1 at most: noise with a standard
    deviation of up to 14 gray levels in the highlights and half of it in the shadows, and JPEG at qualities
    from 95 down to 20. The noise differs from frame to frame.
    """
    if not strength:
        return frames
    amount, loss = rng.uniform(0, strength, 2)
    noise = rng.standard_normal(frames.shape, np.float32)
    noise *= np.float32(14 * amount) * np.sqrt(0.25 + frames * np.float32(0.75 / 255))
    noise += frames
    noise += np.float32(0.5)
    noisy = np.clip(noise, 0, 255).astype(np.uint8)
    return np.stack([_compress(frame, round(95 - 75 * loss)) for frame in noisy])


def _compress(frame: Frames, quality: int) -> Frames:
    """Return a frame (h, w, 3) after JPEG compression."""
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))
