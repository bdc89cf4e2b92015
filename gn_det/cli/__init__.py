"""The ``gn-det`` command-line tool, with one module per subcommand."""
