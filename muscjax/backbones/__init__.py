"""Networks and descriptors that turn scans into patch features."""
