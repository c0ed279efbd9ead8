"""Training: the losses, the loop, checkpoints."""
