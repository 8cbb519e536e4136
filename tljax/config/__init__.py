"""Experiments as frozen dataclasses: keys, ranges, files, search spaces."""
