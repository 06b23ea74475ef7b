"""Statistics of playground pictures at several values of realism, and the time of rendering a triplet.

    python benchmarks/playground.py --out benchmarks/results/playground.json

Photographs have a power spectrum of about 1/f^2 and heavy-tailed gradients. `slope` is the exponent of the
mean power spectrum of 64 frames of 128x128 between 3 and 48 cycles per frame; `low` and `high` are the 10th
and 90th percentiles of the exponents of single frames. `kurtosis` is that of horizontal differences of log
brightness: 3 for a Gaussian, 6 for a Laplacian. `milliseconds` is the CPU time of both clips of a triplet, 9
frames of 128x128, on one thread.
"""

from __future__ import annotations

import time

import numpy as np
from _common import arguments, print_table, write_json

from rvedit.playground.world import render, sample_triplet

SIZE, FRAMES = 128, 9
LOWEST, HIGHEST = 3, 48
KEYS = ("slope", "low", "high", "kurtosis", "milliseconds")


def radial_spectra(pictures):
    """Return the power (n, radii) of pictures (n, size, size) at each whole number of cycles per frame."""
    window = np.outer(np.hanning(SIZE), np.hanning(SIZE))
    centered = pictures - pictures.mean(axis=(1, 2), keepdims=True)
    power = np.abs(np.fft.fft2(centered * window)) ** 2
    axis = np.fft.fftfreq(SIZE) * SIZE
    ring = np.hypot(axis[:, None], axis).round().astype(int).ravel()
    return np.stack([np.bincount(ring, p.ravel()) / np.bincount(ring) for p in power])


def slope(spectrum):
    frequencies = np.arange(LOWEST, HIGHEST + 1)
    return np.polyfit(np.log(frequencies), np.log(spectrum[frequencies]), 1)[0]


def statistics(realism: float, count: int):
    scenes = [sample_triplet(5, i, operations={"swap": 1.0}, realism=realism).source for i in range(count)]
    luma = np.stack([render(scene, 1, SIZE, SIZE)[0] for scene in scenes]) @ np.array([0.299, 0.587, 0.114])
    spectra = radial_spectra(luma)
    changes = np.diff(np.log(luma + 5), axis=2)
    changes -= changes.mean()
    low, high = np.percentile([slope(spectrum) for spectrum in spectra], [10, 90])
    return {
        "slope": slope(spectra.mean(axis=0)),
        "low": low,
        "high": high,
        "kurtosis": (changes**4).mean() / (changes**2).mean() ** 2,
    }


def milliseconds(realism: float, count: int):
    triplets = [sample_triplet(0, index, realism=realism) for index in range(count)]
    render(triplets[-1].source, 1, SIZE, SIZE)
    started = time.process_time()
    for triplet in triplets:
        for scene in (triplet.source, triplet.target):
            render(scene, FRAMES, SIZE, SIZE)
    return (time.process_time() - started) / count * 1e3


def main() -> None:
    parser = arguments(__doc__, chooses_device=False)
    parser.add_argument("--realism", type=float, nargs="+", default=[0.0, 0.5, 1.0])
    parser.add_argument("--count", type=int, default=64, help="frames and triplets")
    args = parser.parse_args()
    table = {
        f"{value:g}": {
            key: float(number)
            for key, number in {
                **statistics(value, args.count),
                "milliseconds": milliseconds(value, args.count),
            }.items()
        }
        for value in args.realism
    }
    rows = [(name, *(f"{row[key]:.2f}" for key in KEYS)) for name, row in table.items()]
    print_table(("realism", *KEYS), rows)
    write_json(args, {"table": table})


if __name__ == "__main__":
    main()
