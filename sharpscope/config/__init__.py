"""The description of a study: its fields and their checks, and the YAML file that holds them. No torch, no numpy."""
