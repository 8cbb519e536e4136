"""Mappings of text encoders."""
