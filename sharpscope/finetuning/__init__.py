"""Training: the loop that all methods share (``trainer``), the parts of a method (``method``), and the methods."""
