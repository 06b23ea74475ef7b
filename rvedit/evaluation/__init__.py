"""How well an edit was done."""
