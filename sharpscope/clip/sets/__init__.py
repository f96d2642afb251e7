"""Data sets: one layout a file; ``clip.data`` is the entry."""
