"""All experiments, in the order of ``docs/reproduction.md``."""

from importlib import import_module
from typing import TYPE_CHECKING

from moepp.errors import ConfigError, nearest

if TYPE_CHECKING:
    from .experiment import Experiment

NAMES = (
    "headline",
    "table3",
    "table4",
    "table5",
    "table6",
    "table_a",
    "table_b",
    "table_c",
    "figure3",
    "figure4",
    "figure5",
    "figure6",
    "figure_a",
    "sweep_gamma",
    "sweep_beta",
    "sweep_init",
    "published_values",
    "balance_loss",
    "smallest",
    "same_flops",
    "scores",
    "context",
    "perturbation",
    "batches",
    "sources",
)


def experiment(name: str) -> "Experiment":
    """The experiment of this name.

    Raises:
        ConfigError: there is none.
    """
    if name not in NAMES:
        raise ConfigError(f"experiment {name!r} does not exist; {nearest(name, NAMES)}")
    return import_module(f"{__package__}.{name}").EXPERIMENT
