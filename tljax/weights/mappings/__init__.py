"""Names of other libraries' parameters, a file a family."""
