"""Everything that can edit a clip, behind one protocol."""

from rvedit.editors.base import Editor
from rvedit.editors.load import check_settings, load_editor
from rvedit.editors.rvedit import RVEDiTEditor
from rvedit.editors.whole_clip import KNOWN, WholeClipEditor

__all__ = ["KNOWN", "Editor", "RVEDiTEditor", "WholeClipEditor", "check_settings", "load_editor"]
