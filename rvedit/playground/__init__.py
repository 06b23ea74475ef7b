"""The procedural world that nano is trained and evaluated on."""
