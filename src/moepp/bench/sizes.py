"""The sizes that benchmarks speak of: the paper's Table 2, and a tiny one for trying things."""

import dataclasses

from ..config import MoEConfig
from ..errors import ConfigError, nearest
from ..model import MoEPPConfig, preset

SIZES = {
    "tiny": "debug",
    "0.6b": "moepp-0.6b-8+4",
    "1b": "moepp-1b-16+4",
    "2b": "moepp-2b-32+8",
    "7b": "moepp-7b-16+4",
}


def model_config(size: str, **overrides: object) -> MoEPPConfig:
    """The preset of a size; ``vanilla=True`` gives its twin.

    Raises:
        ConfigError: no such size.
    """
    if size not in SIZES:
        raise ConfigError(f"--sizes={size} does not exist; {nearest(size, SIZES)}")
    return preset(SIZES[size], **overrides)


def layer_config(size: str) -> MoEConfig:
    """One layer of that size. Dropless: what is timed is the routing as it was chosen.

    Raises:
        ConfigError: no such size.
    """
    return dataclasses.replace(model_config(size).moe, capacity_factor=None, eval_capacity_factor=None)
