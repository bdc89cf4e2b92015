"""Start a run from the command line: arguments, checks, processes, and the run itself."""
