"""Every sharpness measure of every layer at one point of the path: a registry, and one file a family of measures."""
