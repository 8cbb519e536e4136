"""Experiments as frozen dataclasses: keys, ranges, files, search spaces."""

from tljax.config.schema import Experiment, default

__all__ = ["Experiment", "default"]
