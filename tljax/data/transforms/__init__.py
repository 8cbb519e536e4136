"""From a stored example to what a network reads."""
