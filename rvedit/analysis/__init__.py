"""What a model does inside (Fig. 4), and what came of its edits (Tables 1 to 3, Figs. 2 and 5 to 12)."""
