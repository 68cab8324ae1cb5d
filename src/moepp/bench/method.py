"""The one way in which moepp measures time.

Machines are noisy and get warm, so variants run in turns, in an order drawn anew each round, in one process; what is
reported are medians with the distance between quartiles, and ratios between variants of the same run.
"""

import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_WARMUP_ROUNDS = 2
_LEAST_ROUNDS = 5


@dataclass(frozen=True)
class Timing:
    """Seconds of one variant."""

    median: float
    iqr: float
    """Distance between the first and the third quartile."""
    seconds: tuple[float, ...]
    """Of each round; variants of one run can be compared round by round."""

    @classmethod
    def of(cls, seconds: tuple[float, ...]) -> "Timing":
        first, median, third = statistics.quantiles(seconds, n=4)
        return cls(median=median, iqr=third - first, seconds=seconds)

    @property
    def rounds(self) -> int:
        return len(self.seconds)


def interleave(
    variants: Mapping[str, Callable[[], object]], *, rounds: int, budget: float | None = None, seed: int = 0
) -> dict[str, Timing]:
    """Times each variant once a round.

    Args:
        variants: what to run, by name; each call must leave nothing behind that the next would feel.
        rounds: at least 4, for quartiles to mean something.
        budget: seconds after which it is enough, once there are 5 rounds; slow work is also warmed up less.
        seed: of the order within the rounds.
    """
    assert rounds >= 4
    order = list(variants)
    generator = random.Random(seed)
    seconds: dict[str, list[float]] = {name: [] for name in order}
    begin = time.perf_counter()

    def spent(share: float) -> bool:
        return budget is not None and time.perf_counter() - begin > share * budget

    warm = 0
    while warm < _WARMUP_ROUNDS and not (warm and spent(1 / _LEAST_ROUNDS)):
        generator.shuffle(order)
        for name in order:
            variants[name]()
        warm += 1
    for number in range(rounds):
        if number >= _LEAST_ROUNDS and spent(1.0):
            break
        generator.shuffle(order)
        for name in order:
            _wait()
            start = time.perf_counter()
            variants[name]()
            _wait()
            seconds[name].append(time.perf_counter() - start)
    return {name: Timing.of(tuple(values)) for name, values in seconds.items()}


def machine() -> dict[str, Any]:
    """Where and with what a number was measured."""
    return {
        "processor": _processor(),
        "cores": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
