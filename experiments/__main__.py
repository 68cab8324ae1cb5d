"""``python -m experiments NAME``."""

import sys

from .entry import run

run(sys.argv[1:])
