"""``python -m moepp``."""

from .cli import main

main()
