"""What is read from a clip, and what an edit of it will not hold, for people and programs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from av.video.reformatter import ColorPrimaries, Colorspace, ColorTrc

from rvedit.io.video.clip import FULL, LIMITED, RGB, VideoInfo
from rvedit.io.video.losses import losses

_UNSPECIFIED = "unspecified"


def _names(kind: Any) -> dict[int, str]:
    return {member.value: member.name.lower() for member in kind}


_COLORS = {
    "color_range": {LIMITED: "limited range", FULL: "full range"},
    "colorspace": {**_names(Colorspace), RGB: "rgb"},
    "color_primaries": _names(ColorPrimaries),
    "color_trc": _names(ColorTrc),
}


def clip_report(info: VideoInfo, suffix: str) -> dict[str, Any]:
    """Return a description of a clip, and of what an edit with this suffix will not hold, as JSON values.

    `offsets` are the seconds that are added to the times of each part of the file, of which there are several
    where its clock jumps. Colors are named as in FFmpeg; those that it does not name are unspecified.
    """
    colors = {key: names.get(getattr(info, key), _UNSPECIFIED) for key, names in _COLORS.items()}
    aspect = info.pixel_aspect or 1
    return {
        "path": str(info.path),
        "kind": info.kind,
        "width": info.width,
        "height": info.height,
        "pixel_aspect": f"{aspect.numerator}:{aspect.denominator}",
        "num_frames": info.num_frames,
        "frame_rate": float(info.frame_rate),
        "duration": info.duration,
        "offsets": [float(offset) for offset in info.clock.offsets],
        "streams": list(info.streams),
        "pix_fmt": info.pix_fmt,
        **colors,
        "is_interlaced": info.is_interlaced,
        "has_alpha": info.has_alpha,
        "is_damaged": info.truncated,
        "ends_early": info.ends_early,
        "output_suffix": suffix,
        "losses": losses(info, suffix),
    }


def report_lines(report: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of a report for people."""
    yield report["path"]
    size = f"{report['width']}x{report['height']}"
    if report["pixel_aspect"] != "1:1":
        size += f", pixels {report['pixel_aspect']}"
    length = "1 frame" if report["num_frames"] == 1 else f"{report['num_frames']} frames"
    if report["kind"] != "image":
        length += f" in {report['duration']:.3f} s, {report['frame_rate']:.6g} per second"
    yield f"  {report['kind']}, {size}, {length}"
    yield from (f"  {stream}" for stream in report["streams"])
    colors = [report["pix_fmt"], *(str(report[key]) for key in _COLORS)]
    yield f"  colors: {', '.join(color for color in colors if color != 'unspecified')}"
    first, *others = report["offsets"]
    if first:
        yield f"  its clock starts late: times are moved by {first:.3f} s"
    if others:
        yield f"  its clock jumps: {1 + len(others)} parts are joined"
    if report["is_interlaced"]:
        yield "  interlaced: frames are deinterlaced"
    if report["is_damaged"]:
        what = "ends early" if report["ends_early"] else "is damaged"
        yield f"  {what}: frames that decode are edited with --allow-truncated"
    yield from (f"  an edit: {loss}" for loss in report["losses"])
