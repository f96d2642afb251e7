"""Conducts a study: tasks, units of work, workers, the run directory, results, and what runs have to say together."""
