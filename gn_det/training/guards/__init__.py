"""Guards of a run: signals, losses and gradients that are not finite, stalled processes, and full disks."""
