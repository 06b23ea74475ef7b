"""What surrounds a model's edit of a window: the source's detail, and the source's own pixels."""
