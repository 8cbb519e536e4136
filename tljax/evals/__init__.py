"""What trained or frozen networks are worth: predictions, metrics, probes."""
