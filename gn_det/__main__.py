"""``python -m gn_det COMMAND ...``, the same as ``gn-det COMMAND ...``."""

from .cli.main import main

main()
