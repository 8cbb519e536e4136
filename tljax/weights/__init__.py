"""Pretrained weights: which there are, and how their arrays become ours."""
