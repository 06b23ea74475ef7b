"""Training sets as their authors publish them, each behind one small reader."""

from rvedit.data.sources.base import BadRow, Reading, Row, Source
from rvedit.data.sources.ditto import DITTO
from rvedit.data.sources.kiwi import KIWI
from rvedit.data.sources.openve import OPENVE
from rvedit.data.sources.reco import RECO

SOURCES: dict[str, Source] = {source.name: source for source in (OPENVE, RECO, DITTO, KIWI)}

__all__ = ["DITTO", "KIWI", "OPENVE", "RECO", "SOURCES", "BadRow", "Reading", "Row", "Source"]
