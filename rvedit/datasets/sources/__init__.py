"""Training sets as their authors publish them, each behind one small reader."""

from rvedit.datasets.sources.base import BadRow, Reading, Row, Source
from rvedit.datasets.sources.ditto import DITTO
from rvedit.datasets.sources.kiwi import KIWI
from rvedit.datasets.sources.openve import OPENVE
from rvedit.datasets.sources.reco import RECO

SOURCES: dict[str, Source] = {source.name: source for source in (OPENVE, RECO, DITTO, KIWI)}

__all__ = ["DITTO", "KIWI", "OPENVE", "RECO", "SOURCES", "BadRow", "Reading", "Row", "Source"]
