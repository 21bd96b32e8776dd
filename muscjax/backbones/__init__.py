"""Networks and descriptors that turn scans into patch features."""

WEIGHT_FREE = {"image": "texture", "points": "fpfh"}  # what stands in for a network, by name; the defaults
