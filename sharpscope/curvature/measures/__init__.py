"""Every sharpness measure of every layer at one point of the path: a registry, and one file per family of measures."""
