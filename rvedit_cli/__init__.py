"""The command line: each file parses the options of one command, runs it and prints the result."""
