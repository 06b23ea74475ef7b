"""The procedural world that nano is trained and tested in."""
