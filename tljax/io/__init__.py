"""Files on disks and in buckets: whole, locked, checked, fetched."""
