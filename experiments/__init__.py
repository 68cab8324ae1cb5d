"""The paper's tables and figures, and the questions it left open, one file each: ``python -m experiments.table3``."""
