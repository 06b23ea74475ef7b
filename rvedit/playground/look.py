"""How a realistic clip looks: light, camera and lens, all drawn from the scene's look seed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from rvedit.playground.scene import Scene

_GENERATORS = {"look": 0, "backdrop": 1, "things": 2}


@dataclass(frozen=True, eq=False)
class Look:
    """Parameters at realism 1; lengths are fractions of the frame, and of its short side for blurs."""

    seed: int
    is_cluttered: bool
    """Whether the backdrop is a dead-leaves picture instead of a landscape."""
    light: NDArray[np.float64]
    """Direction of the light, (x, y), of length 1."""
    cloudiness: float
    """Mean cover of the sky by clouds."""
    patches: np.float32
    """Standard deviation of the logarithm of the light on the backdrop, for shadows of clouds."""
    defocus: float
    """Standard deviation of the blur of what is far."""
    vignette: float
    """Share of the light that is missing in the corners."""
    exposure: NDArray[np.float64]
    """Gain of red, green and blue."""
    waves: NDArray[np.float64]
    """(7, 3): amplitude, frequency in radians per frame, and phase of zoom, two shakes in x, two in y,
    brightness and color."""

    def generator(self, use: str, *numbers: int) -> np.random.Generator:
        """Return the generator of a part of the picture."""
        return np.random.default_rng([self.seed, _GENERATORS[use], *numbers])

    def camera(self, scene: Scene, frame: int) -> tuple[float, float, float]:
        """Return the zoom, at least 1, and the shift (x, y) of the camera in a frame."""
        zoom, x, x2, y, y2 = self._at(frame)[:5] * scene.realism
        return 1 + scene.realism * self.waves[0, 0] + zoom, x + x2, y + y2

    def gains(self, scene: Scene, frame: int) -> NDArray[np.float32]:
        """Return the gains (3,) of red, green and blue in a frame."""
        brightness, color = self._at(frame)[5:]
        change = np.log(self.exposure) + brightness + color * np.array([1, 0, -1])
        return np.exp(scene.realism * change).astype(np.float32)

    def _at(self, frame: int) -> NDArray[np.float64]:
        """Return the values (7,) of the waves in a frame."""
        amplitude, frequency, phase = self.waves.T
        return np.asarray(amplitude * np.sin(phase + frequency * frame))


@lru_cache(maxsize=64)
def sample_look(seed: int) -> Look:
    """Return the look of a seed."""
    rng = np.random.default_rng([seed, _GENERATORS["look"]])
    angle = rng.uniform(0.1, 0.9) * math.pi
    amplitudes = [0.035, 0.006, 0.003, 0.006, 0.003, 0.08, 0.03]
    periods = [90, 40, 11, 36, 9, 50, 70]
    return Look(
        seed=seed,
        is_cluttered=bool(rng.random() < 0.5),
        light=np.array([math.cos(angle), -math.sin(angle)]),
        cloudiness=rng.uniform(-0.2, 0.5),
        patches=np.float32(rng.uniform(0.05, 0.35)),
        defocus=max(0.0, rng.uniform(-0.014, 0.008)),
        vignette=rng.uniform(0, 0.45),
        exposure=np.exp(rng.uniform(-0.25, 0.15) + rng.normal(0, 0.04, 3)),
        waves=np.stack(
            [
                rng.random(7) * amplitudes,
                2 * math.pi / (np.array(periods) * rng.uniform(0.7, 1.5, 7)),
                rng.uniform(0, 2 * math.pi, 7),
            ],
            axis=1,
        ),
    )
