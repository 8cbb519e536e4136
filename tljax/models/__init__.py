"""Networks in Flax."""
