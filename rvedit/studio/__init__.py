"""The job of `studio`: a page and a queue of edits on this machine."""
