"""From a command line to a run: arguments, checks, processes, training or evaluation."""
