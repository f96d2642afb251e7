"""Runs a study: tasks and units of work, workers, run directory, results, and comparisons across runs."""
