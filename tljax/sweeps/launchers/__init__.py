"""How a sweep's trials are started: here, by Slurm, or by a launcher of a user's own."""
