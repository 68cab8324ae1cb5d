"""Amounts on ``moepp plan``'s command line, such as ``80G``, ``25GB/s`` and ``312TF``."""

import re
from dataclasses import dataclass

from ..errors import ConfigError
from ..plan import Cluster
from .options import option_name, require_at_least_one

_FORM = re.compile(r"\s*(?P<number>\d+(\.\d*)?([eE][+-]?\d+)?)\s*(?P<prefix>[KMGTP]?)(?P<unit>[A-Za-z/]*)\s*")
_POWER = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}


@dataclass(frozen=True)
class PlanOptions:
    """As they were written; bandwidths are one GPU's, one way."""

    gpus: int | None
    gpu_memory: str
    gpus_per_node: int
    peak: str
    utilisation: float
    bandwidth: str
    node_bandwidth: str

    def cluster(self) -> Cluster:
        """The machines.

        Raises:
            ConfigError: an option is no such amount.
        """
        require_at_least_one(self, "gpus", "gpus_per_node")
        if not 0 < self.utilisation <= 1:
            raise ConfigError(f"--utilisation={self.utilisation} must be above 0 and at most 1; 0.4 is usual")
        return Cluster(
            gpu_memory=self._amount("gpu_memory", ("", "B", "iB"), 1024, "80G"),
            gpus_per_node=self.gpus_per_node,
            peak=self._amount("peak", ("F", "FLOPS", "FLOP/s", "FLOPs/s"), 1000, "312TF"),
            utilisation=self.utilisation,
            bandwidth=self._amount("bandwidth", ("B/s",), 1000, "25GB/s"),
            node_bandwidth=self._amount("node_bandwidth", ("B/s",), 1000, "300GB/s"),
        )

    def _amount(self, name: str, units: tuple[str, ...], base: int, example: str) -> float:
        text = getattr(self, name)
        match = _FORM.fullmatch(text)
        if match is None or match["unit"] not in units or float(match["number"]) <= 0:
            raise ConfigError(f"{option_name(name)}={text!r} is not an amount that works here; write it as {example}")
        return float(match["number"]) * base ** _POWER[match["prefix"]]
