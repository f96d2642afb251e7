"""What the machine offers: CPU cores, devices, the arithmetic of float32, the ranks that torchrun started, and the
teams of ranks that share a unit of work."""
