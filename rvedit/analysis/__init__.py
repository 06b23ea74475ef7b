"""Analysis of models and results: attention (Fig. 4), tables (1 to 3) and galleries (Figs. 2, 5 to 12)."""
