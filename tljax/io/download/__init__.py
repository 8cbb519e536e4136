"""Files from package indexes, model hubs and buckets, fetched once."""
