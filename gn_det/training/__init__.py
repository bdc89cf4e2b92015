"""Training: trainer, training step, optimizer, hooks and writers."""
