"""Clips, files, lists and chat endpoints: what every job shares."""
