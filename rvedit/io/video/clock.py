"""Times of files whose clock starts late, starts again or jumps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from rvedit.io.video.gif import demux
from rvedit.io.video.streams import is_broadcast

# All in seconds.
_GAP = 1.0
"""Longest pause of all streams of a broadcast; a longer one is a jump of the clock."""
_FALL = 0.1
"""Largest error of decoding times, which never fall otherwise."""
_LATE_START = 10
"""Latest start that is kept, as an author's wish, in formats other than those of broadcasts."""


@dataclass(frozen=True)
class Clock:
    """Correction of a file's times.

    A file consists of parts, between which the clock of all streams jumps, such as recordings that were
    joined. `offsets`, in seconds, are added to the times of each part. With `is_in_order`, as in AVI, packets
    have only decoding times: the n-th frame is shown at that of the n-th packet.
    """

    offsets: tuple[Fraction, ...] = (Fraction(0),)
    is_in_order: bool = False

    def corrected_packets(self, container: InputContainer, video: VideoStream) -> Iterator[Packet[Any]]:
        """Yield the packets of all streams, as `InputContainer.demux` does, with corrected times."""
        parts = _Parts(container, video)
        for packet in demux(container):
            part = parts.part_of(packet) if len(self.offsets) > 1 else 0
            ticks = round(self.offsets[part] / packet.time_base)
            packet.dts = None if packet.dts is None else packet.dts + ticks
            packet.pts = None if packet.pts is None else packet.pts + ticks
            if self.is_in_order:
                packet.pts = packet.dts
            yield packet


UNCHANGED = Clock()
"""The clock of files whose times are right."""


class Extent(NamedTuple):
    """Start of the first and of the last packet, and latest end of a packet."""

    start: Fraction
    last: Fraction
    end: Fraction

    def joined(self, other: Extent) -> Extent:
        """Return the extent of both."""
        return Extent(min(self.start, other.start), max(self.last, other.last), max(self.end, other.end))

    def moved(self, offset: Fraction) -> Extent:
        """Return the extent at times that are later by `offset`."""
        return Extent(*(time + offset for time in self))


class ClockSurvey:
    """Times of all packets of a file, from which its `Clock` follows; few numbers for each part."""

    def __init__(self, container: InputContainer, video: VideoStream) -> None:
        self._parts = _Parts(container, video)
        self._video = video.index
        self._delays: dict[int, int] = {}  # from decoding to display of the first packet, by stream index
        self._is_in_order = False
        self._time_bases = {stream.index: stream.time_base or Fraction(1) for stream in container.streams}
        self._ticks: list[dict[int, tuple[int, int, int]]] = [{}]  # extents of each part, by stream index

    def add(self, packet: Packet[Any]) -> int:
        """Add the next packet of `InputContainer.demux`; return the number of its part."""
        part, index = self._parts.part_of(packet), packet.stream.index
        time = packet.pts
        if time is None and packet.dts is not None:
            time = packet.dts + self._delays.get(index, 0)
        if time is None or packet.is_discard:
            return part
        if index not in self._delays:
            self._delays[index] = 0 if packet.dts is None else time - packet.dts
            self._is_in_order = self._is_in_order or (index == self._video and packet.pts is None)
        if part == len(self._ticks):
            self._ticks.append({})
        start, last, end = self._ticks[part].get(index, (time, time, time))
        end = max(end, time + (packet.duration or 0))
        self._ticks[part][index] = (min(start, time), max(last, time), end)
        return part

    def start_at(self, index: int, time: int) -> None:
        """Leave out the packets of a stream before a time, in ticks, because they do not decode."""
        if index in self._ticks[0]:
            _, last, end = self._ticks[0][index]
            self._ticks[0][index] = (time, last, end)

    def extents(self) -> list[dict[int, Extent]]:
        """Return the extents of each part's streams by their index, in seconds, before correction."""
        return [
            {
                index: Extent(*(time * self._time_bases[index] for time in ticks))
                for index, ticks in part.items()
            }
            for part in self._ticks
        ]

    def clock(self) -> Clock:
        """Return the clock with which no stream overlaps between parts, and one goes on without a gap."""
        parts = [
            {index: extent for index, extent in part.items() if index in self._parts.timekeepers}
            for part in self.extents()
        ]
        start = min((extent.start for extent in parts[0].values()), default=Fraction(0))
        offset = -start if self._parts.is_broadcast or start > _LATE_START else Fraction(0)
        ends = {index: extent.end + offset for index, extent in parts[0].items()}
        offsets = [offset]
        for part in parts[1:]:
            both = part.keys() & ends.keys()
            latest = max(ends.values())
            offset = max(ends.get(index, latest) - part[index].start for index in both or part)
            ends |= {index: extent.end + offset for index, extent in part.items()}
            offsets.append(offset)
        return Clock(tuple(offsets), is_in_order=self._is_in_order)

    def corrected(self, clock: Clock, index: int) -> Extent | None:
        """Return the extent of a stream after correction, or None if it has no times."""
        whole = None
        for offset, part in zip(clock.offsets, self.extents(), strict=True):
            if index in part:
                extent = part[index].moved(offset)
                whole = extent if whole is None else extent.joined(whole)
        return whole


class _Last(NamedTuple):
    """The last packet of a stream: its part, and its decoding time and end in seconds."""

    part: int
    time: float
    end: float


class _Parts:
    """Assignment of packets, in the order of the file, to its parts.

    A part begins where the decoding time of the video or of sound falls and, in formats of broadcasts, after
    a pause of both. As streams are interleaved, they enter the part at different packets: each at the one
    that fits the new part better than the stream's own last packet.
    """

    def __init__(self, container: InputContainer, video: VideoStream) -> None:
        self.timekeepers = {video.index, *(stream.index for stream in container.streams.audio)}
        self.is_broadcast = is_broadcast(container)
        self._ticks = {stream.index: float(stream.time_base or 1) for stream in container.streams}  # seconds
        self._ends: list[float] = []  # latest end of the timekeepers' packets in each part
        self._lasts: dict[int, _Last] = {}  # by stream index

    def part_of(self, packet: Packet[Any]) -> int:
        """Return the number of the packet's part, from 0."""
        newest = max(0, len(self._ends) - 1)
        index = packet.stream.index
        last = self._lasts.get(index)
        if packet.dts is None or packet.is_discard:
            return newest if last is None else last.part
        time = packet.dts * self._ticks[index]
        end = time + (packet.duration or 0) * self._ticks[index]
        is_older = last is not None and last.part < newest
        if last is not None and is_older and abs(time - self._ends[newest]) < abs(time - last.end):
            last = None
        part = newest if last is None else last.part
        if index in self.timekeepers:
            if part == newest and self._begins_part(time, last):
                part = len(self._ends)
            if part == len(self._ends):
                self._ends.append(end)
            self._ends[part] = max(self._ends[part], end)
        self._lasts[index] = _Last(part, time, end)
        return part

    def _begins_part(self, time: float, last: _Last | None) -> bool:
        fell = last is not None and time < last.time - _FALL
        return fell or (self.is_broadcast and bool(self._ends) and time > self._ends[-1] + _GAP)
