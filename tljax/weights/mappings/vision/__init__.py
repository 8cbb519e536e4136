"""Mappings of image encoders."""
