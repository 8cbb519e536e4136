"""How a sweep's runs are started: here, or by Slurm."""
