"""Edit clips of any length and size with a pipeline that edits one window at its own size."""
