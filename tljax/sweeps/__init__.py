"""Many runs of a config that differ in some keys."""
