"""The trainer, its step, optimizer, hooks and writers."""
