"""Text encoders, one file a family."""
