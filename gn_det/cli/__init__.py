"""The commands: one module for each, and ``gn-det``, which dispatches to them."""
