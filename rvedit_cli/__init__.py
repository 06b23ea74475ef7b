"""The command line: one file per command; parse, call a workflow, print."""
