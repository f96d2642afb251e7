"""Data sets: what a spec such as ``imagenet@train`` means (``spec``), and one file per layout on disk."""
