"""The verbs of the command line: one file each, which parses flags, calls, and prints."""
