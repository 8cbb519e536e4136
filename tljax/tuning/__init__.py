"""Which parameters train, and at what rate."""
