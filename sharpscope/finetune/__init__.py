"""Training: one method a file, and the loop they share (``trainer``)."""
