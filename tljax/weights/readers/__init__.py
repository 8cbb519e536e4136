"""Files of weights, opened as data."""
