"""What a training run will need, before it starts: memory, FLOPs, bytes and time from the configuration alone."""
