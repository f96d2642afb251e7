"""The command line. ``main`` handles arguments, terminal and exit code; ``commands`` is the table of the commands."""
