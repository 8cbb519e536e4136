"""Image encoders, one file a family."""
