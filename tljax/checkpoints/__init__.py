"""Checkpoints and workdirs: what a run leaves on a disk or in a bucket."""
