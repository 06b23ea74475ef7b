"""Parameters of a playground clip: a scene and the things in it."""

from __future__ import annotations

from dataclasses import dataclass

from rvedit.playground import grammar


@dataclass(frozen=True)
class Thing:
    """A thing in a scene; positions and sizes are fractions of the frame, speeds fractions per frame."""

    noun: str
    color: str | None = None
    x: float = 0.5
    y: float = 0.5
    radius: float = 0.22
    drift: float = 0.0
    bob: float = 0.0
    phase: float = 0.0

    @property
    def name(self) -> str:
        """Name in captions and instructions: `dog` or `red car`."""
        return f"{self.color} {self.noun}" if self.color else self.noun

    @property
    def rgb(self) -> grammar.RGB:
        """Color of the body."""
        return grammar.COLORS[self.color] if self.color else grammar.THINGS[self.noun][0]


@dataclass(frozen=True)
class Scene:
    """Parameters of a clip."""

    background: str
    horizon: float
    pan: float
    hills_phase: float
    things: tuple[Thing, ...] = ()
    style: str | None = None
    realism: float = 0.0
    """From 0 (flat drawings) to 1 (pictures with the statistics of photographs)."""
    look: int = 0
    """Seed of all that realism adds."""

    @property
    def caption(self) -> str:
        """Caption of the clip, the ℓ* of the reference branch."""
        names = [grammar.with_article(thing.name) for thing in self.things]
        subject = "nothing" if not names else " and ".join(names)
        return f"{subject}, {self.background} in the background" + (f", {self.style}" if self.style else "")
