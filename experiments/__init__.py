"""The paper's tables and figures, and the questions it left open, one file each: ``python -m experiments.table3``."""

from moepp.logs import quiet_libraries

quiet_libraries()  # before a module of this folder loads them
