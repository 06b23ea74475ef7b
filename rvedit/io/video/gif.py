"""Frame delays of GIF: players take delays below 2/100 s for 10/100 s, FFmpeg only those of 0."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from av.container import InputContainer
from av.packet import Packet

MIN_DELAY, DEFAULT_DELAY = 2, 10
"""In 1/100 s, the time base of GIF."""


def demux(container: InputContainer, *streams: Any) -> Iterator[Packet[Any]]:
    """Yield the packets of a container, with those of a GIF at the times at which players show them."""
    delay = 0
    for packet in container.demux(*streams):
        if container.format.name == "gif" and packet.pts is not None and packet.duration is not None:
            packet.pts = packet.dts = packet.pts + delay
            if packet.size and packet.duration < MIN_DELAY:
                delay += DEFAULT_DELAY - packet.duration
                packet.duration = DEFAULT_DELAY
        yield packet
