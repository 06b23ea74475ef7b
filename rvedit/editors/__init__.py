"""Everything that can edit a clip, behind one protocol."""

from rvedit.editors.base import Editor
from rvedit.editors.rvedit import RVEDiTEditor, load_editor

__all__ = ["Editor", "RVEDiTEditor", "load_editor"]
