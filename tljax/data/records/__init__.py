"""Examples in array_record files: written once, read by index."""
