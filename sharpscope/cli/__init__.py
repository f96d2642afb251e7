"""The command line: ``main`` (arguments, terminal, exit code), ``commands`` (the table of them), a file a group."""
