"""Evaluation of edits: multimodal judges, exact measures, statistics and reports."""
