"""Measures of an edit that need its source alone: no model, no target and no instruction.

Frames are uint8 RGB of shape (h, w, 3), and clips are streamed. Where source and edit differ in size, the
edit is resized to the source. These are measures and not scores: none says whether the instruction was
followed, and an edit that changes nothing is perfect in all of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from rvedit.evaluation.measures import Levels, Mask, decibels, ssim_map
from rvedit.io.video import Frame, VideoInfo, VideoReader

CHANGED_LEVELS = 16
"""Levels, of 255, by which a smoothed frame differs where it was edited; compression differs by less."""
WHOLE_FRAME = 0.95
"""Share of changed pixels above which nothing counts as outside the changed region."""
SMALL_SIDE = 512
"""Pixels of the longer side of frames for optical flow and mean colors."""
SAME_DURATION = 0.05
"""Relative difference of durations up to which clips of other lengths are aligned by time."""


def measure_edit(source: Path, edited: Path) -> dict[str, float | None]:
    """Return all measures of an edit by their names in `DEFINITIONS`; None where one does not apply.

    Raises UserError if a clip cannot be read to its end.
    """
    with ExitStack() as stack:
        readers = [stack.enter_context(VideoReader(path, threads=1)) for path in (source, edited)]
        frames = measure_frames(_aligned(*readers))
        return {**frames, **container_measures(*(reader.info for reader in readers))}


def measure_frames(pairs: Iterable[tuple[Frame, Frame]]) -> dict[str, float | None]:
    """Return the measures of frames of the source and the edit at the same times, at least one pair.

    Frames of a pair have the same shape. Each measure is a mean over the clip; those of a ratio are the ratio
    of both clips' means.
    """
    sums: defaultdict[str, float] = defaultdict(float)
    previous: tuple[Frame, Frame] | None = None
    for pair in pairs:
        source, edited = pair
        outside = ~changed_region(source, edited)
        sums["frames"] += 1
        sums["pixels"] += outside.size
        sums["outside"] += int(outside.sum())
        sums["error"] += float(squared_error(source, edited)[outside].sum(dtype=np.float64))
        sums["similarity"] += float(_similarity(source, edited)[outside].sum(dtype=np.float64))
        sums["color"] += color_difference(source, edited)
        sums["displacement"] += displacement(source, edited)
        for side, frame in zip(_SIDES, pair, strict=True):
            sums[f"{side}_sharpness"] += sharpness(frame)
            if previous is not None:
                before = previous[_SIDES.index(side)]
                sums[f"{side}_change"] += frame_change(before, frame)
                sums[f"{side}_warping"] += warping_error(before, frame)
        previous = pair
    changed = 1 - sums["outside"] / sums["pixels"]
    has_outside = changed <= WHOLE_FRAME
    steps = max(1.0, sums["frames"] - 1)
    # One level of 255 on both sides: a still source would give ratios without bound.
    floors = {"change": steps, "warping": steps, "sharpness": sums["frames"]}
    ratio = {
        name: (sums[f"edited_{name}"] + floor) / (sums[f"source_{name}"] + floor)
        for name, floor in floors.items()
    }
    return {
        "changed": changed,
        "psnr": decibels(sums["error"] / sums["outside"]) if has_outside else None,
        "ssim": sums["similarity"] / sums["outside"] if has_outside else None,
        "displacement": sums["displacement"] / sums["frames"],
        "frame_change": ratio["change"],
        "warping_error": ratio["warping"],
        "sharpness": ratio["sharpness"],
        "color_shift": sums["color"] / sums["frames"],
    }


_SIDES = ("source", "edited")


def changed_region(source: Frame, edited: Frame) -> Mask:
    """Return where a frame was edited (h, w), from the difference of the frames alone.

    It is where the difference, smoothed with a Gaussian of sigma 1.5, exceeds 16 levels in a channel, without
    what is thinner than 5 pixels (morphological opening; Serra, "Image Analysis and Mathematical Morphology",
    1982), and 3 pixels around it. So noise and compression, which smoothing removes, and the edges of things
    that have moved a little count as outside.
    """
    difference = cv2.GaussianBlur(cv2.subtract(source, edited, dtype=cv2.CV_16S), (0, 0), 1.5)
    within = cv2.inRange(difference, (-CHANGED_LEVELS,) * 3, (CHANGED_LEVELS,) * 3)
    opened = cv2.morphologyEx(cv2.bitwise_not(within), cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
    return np.asarray(cv2.dilate(opened, np.ones((7, 7), np.uint8)), bool)


def squared_error(source: Frame, edited: Frame) -> NDArray[np.float32]:
    """Return the squared error at each pixel (h, w), mean over channels of values in [0, 1].

    Its mean outside the changed region gives the PSNR there: 10 log10(1 / mean), in dB, at most 60. As large
    errors count as changes, it is to be read together with the share of changed pixels.
    """
    difference = cv2.absdiff(source, edited)
    square = cv2.multiply(difference, difference, dtype=cv2.CV_32F)
    return np.asarray(cv2.transform(square, np.full((1, 3), 1 / 3 / 255**2)), np.float32)


def frame_change(before: Frame, now: Frame) -> float:
    """Return the mean absolute difference of consecutive frames, in levels of 0 to 255.

    The edit's over the source's is above 1 for flicker and below 1 for lost motion.
    """
    return float(cv2.absdiff(before, now).mean())


def warping_error(before: Frame, now: Frame) -> float:
    """Return the root mean squared error of a frame predicted from the one before, in levels of 0 to 255.

    Lai et al., "Learning Blind Video Temporal Consistency" (ECCV 2018), eq. 8: pixels are fetched along the
    optical flow, and those that are occluded do not count. The flow is that of the clip itself, as an edit
    may move otherwise than its source. The edit's over the source's is above 1 for flicker that motion does
    not explain.
    """
    before, now = _resized(before), _resized(now)
    flow, seen = _flow(now, before)
    if not seen.any():
        return frame_change(before, now)
    error = np.square(now.astype(np.float32) - _fetch(before, flow)).mean(axis=-1)
    return float(np.sqrt(error[seen].mean()))


def displacement(source: Frame, edited: Frame) -> float:
    """Return how far the picture has moved from the source to the edit, in percent of the frame's diagonal.

    It is the mean length of the optical flow between the frames, weighted with the gradient of luma, as flow
    is known at edges alone. Pixels without a counterpart, as those of most edited things, do not count.
    """
    source, edited = _resized(source), _resized(edited)
    flow, seen = _flow(edited, source)
    luma = _luma(edited)
    gradient = np.hypot(cv2.Sobel(luma, cv2.CV_32F, 1, 0), cv2.Sobel(luma, cv2.CV_32F, 0, 1))
    weight = np.where(seen, gradient, 0)
    length = np.hypot(flow[..., 0], flow[..., 1])
    return float(100 * (length * weight).sum() / max(1.0, weight.sum()) / np.hypot(*luma.shape))


def sharpness(frame: Frame) -> float:
    """Return the variance of the Laplacian of luma, in squared levels.

    Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy" (ICPR 2000). The edit's over the
    source's is below 1 for blur and above 1 for added detail or noise.
    """
    return float(cv2.Laplacian(_luma(frame), cv2.CV_32F).var())


def color_difference(source: Frame, edited: Frame) -> float:
    """Return the length of the median difference of colors over all pixels, as Delta E (CIE 1976 L*a*b*).

    About 2 is just noticeable. An edit of less than half of the frame does not count, but a cast over the
    rest of it does.
    """
    lab = [
        cv2.cvtColor(_resized(frame).astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
        for frame in (source, edited)
    ]
    return float(np.linalg.norm(np.median(lab[1] - lab[0], axis=(0, 1))))


def container_measures(source: VideoInfo, edited: VideoInfo) -> dict[str, float | None]:
    """Return what the files say of length, size, frame rate and sound: ratios of the edit to the source.

    A value of 1 is kept. Sound is 1 if the edit has any, 0 if it has none, and None if the source has none.
    """
    return {
        "duration": edited.duration / source.duration if source.duration else None,
        "num_frames": edited.num_frames / source.num_frames,
        "size": edited.width * edited.height / (source.width * source.height),
        "frame_rate": float(edited.frame_rate / source.frame_rate),
        "sound": float(edited.has_audio) if source.has_audio else None,
    }


def _aligned(source: VideoReader, edited: VideoReader) -> Iterator[tuple[Frame, Frame]]:
    """Yield the frames of both clips at the same times, at the source's size, until the shorter clip ends.

    Clips that last as long but differ in their number of frames are aligned by time, others by number.
    """
    a, b = source.info, edited.info
    by_time = abs(a.duration - b.duration) <= SAME_DURATION * a.duration
    step = a.num_frames / b.num_frames if by_time else 1.0
    frames = iter(source)
    timed, index = next(frames), 0
    for number, other in enumerate(edited):
        while index < int((number + 0.5) * step):
            following = next(frames, None)
            if following is None:
                return
            timed, index = following, index + 1
        yield timed.frame, _at_size(other.frame, a.width, a.height)


def _at_size(frame: Frame, width: int, height: int) -> Frame:
    if frame.shape[:2] == (height, width):
        return frame
    method = cv2.INTER_AREA if frame.shape[0] > height else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(frame, (width, height), interpolation=method), np.uint8)


def _resized(frame: Frame) -> Frame:
    scale = min(1.0, SMALL_SIDE / max(frame.shape[:2]))
    return _at_size(frame, round(frame.shape[1] * scale), round(frame.shape[0] * scale))


def _similarity(source: Frame, edited: Frame) -> Levels:
    smooth: Any = partial(cv2.GaussianBlur, ksize=(11, 11), sigmaX=1.5)
    return ssim_map(_luma(source), _luma(edited), smooth)


def _luma(frame: Frame) -> NDArray[np.float32]:
    return np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), np.float32)


def _flow(frame: Frame, other: Frame) -> tuple[NDArray[np.float32], Mask]:
    """Return where the pixels of `frame` are in `other`, as offsets (h, w, 2), and which of them are there.

    Kroeger et al., "Fast Optical Flow using Dense Inverse Search" (ECCV 2016), with the forward-backward
    check of Ruder et al., "Artistic Style Transfer for Videos" (2016), eq. 5. Frames of less than 16 pixels,
    which are too small for it, have no motion.
    """
    a, b = (cv2.cvtColor(side, cv2.COLOR_RGB2GRAY) for side in (frame, other))
    if min(a.shape) < 16:
        return np.zeros((*a.shape, 2), np.float32), np.ones(a.shape, bool)
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    there = np.asarray(search.calc(a, b, None), np.float32)
    back = _fetch(search.calc(b, a, None), there)
    length = np.square(there).sum(-1) + np.square(back).sum(-1)
    return there, np.square(there + back).sum(-1) <= 0.01 * length + 0.5


def _fetch(image: NDArray[Any], flow: NDArray[np.float32]) -> NDArray[Any]:
    """Return the values of an image (h, w, c) at the pixels that a flow (h, w, 2) leads to."""
    height, width = flow.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    moved = cv2.remap(
        image, x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return np.asarray(moved)
