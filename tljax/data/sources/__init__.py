"""Where examples come from: folders, tables, TFDS, the hub's data sets."""
