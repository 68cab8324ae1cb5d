"""Serving a model over HTTP. ``requests`` and ``guard`` need no web framework; ``server`` needs ``moepp[serve]``."""
