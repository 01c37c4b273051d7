"""Training: one loop, the objectives, the optimizer and its schedule, checkpoints."""
