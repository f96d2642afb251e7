"""What the machine offers: cores, devices, the ranks of one launch, and who measures a unit together."""
