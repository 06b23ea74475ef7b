"""Readers of training datasets in their published formats."""

from rvedit.datasets.sources.base import Row, Source
from rvedit.datasets.sources.ditto import Ditto
from rvedit.datasets.sources.kiwi import Kiwi
from rvedit.datasets.sources.openve import OpenVE
from rvedit.datasets.sources.pairs import Pairs
from rvedit.datasets.sources.reco import ReCo
from rvedit.io.tables import BadRow

SOURCES: dict[str, Source] = {source.name: source for source in (OpenVE(), ReCo(), Ditto(), Kiwi(), Pairs())}

__all__ = ["SOURCES", "BadRow", "Row", "Source"]
