"""What a run costs: FLOPs, memory, time."""
