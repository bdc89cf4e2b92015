"""Run ``python -m gn_det COMMAND ...``, which is the same as ``gn-det COMMAND ...``."""

from .cli.main import main

if __name__ == "__main__":  # spawned processes import this file again
    main()
