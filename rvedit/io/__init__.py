"""Shared input and output: clips, manifests, caches, process pools and chat endpoints."""
