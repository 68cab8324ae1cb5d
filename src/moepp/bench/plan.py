"""One step of a benchmark: a case, and what is compared in it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..layers import MoE
from .layers import layer_group
from .learned import Learned
from .measure import Case, Say, measure_group
from .paper import table_a, table_b
from .router import measure_router
from .rows import Row
from .sizes import model_config
from .work import LayerWork, spread_work, twin_layers

DECODED_BYTES = 2**30
"""Decoding goes through so many layers that their weights are more than caches hold, or through all of a model's."""
DECODED_PASSES = 16


@dataclass(frozen=True, kw_only=True)
class Step:
    """What is timed together."""

    case: Case
    taus: Sequence[float] = ()
    backends: Sequence[str] = ("auto",)
    peers: Sequence[str] = ()
    paper: bool = False
    learned: Learned | None = None


class Layers:
    """Makes the layers that steps run on and keeps the last ones: steps of one size and dtype share them."""

    def __init__(self) -> None:
        self._key: object = None
        self._layers: tuple[list[MoE], list[MoE]] = ([], [])

    def of(self, case: Case) -> tuple[list[MoE], list[MoE]]:
        """MoE++ layers and their vanilla twins."""
        count = _depth(case)
        key = (case.size, case.dtype, case.device, count)
        if key != self._key:
            self._layers = ([], [])  # first give the memory back
            self._layers = twin_layers(case.config, count, dtype=case.dtype, device=case.device)
            self._key = key
        return self._layers


def run_step(step: Step, layers: Layers, *, rounds: int, budget: float | None, say: Say = lambda _: None) -> list[Row]:
    """Measures one step.

    Args:
        rounds: at most.
        budget: seconds for the timing, not counting the checks; None for all rounds.
    """
    case = step.case
    if step.paper:
        table = table_a if case.benchmark == "experts" else table_b
        return table(case, rounds=rounds, budget=budget)
    works = _works(step, layers)
    if case.benchmark == "router":
        return measure_router(case, works, step.backends, rounds=rounds, budget=budget, say=say)
    return measure_group(layer_group(case, works, step.backends, step.peers), rounds=rounds, budget=budget, say=say)


def _works(step: Step, layers: Layers) -> dict[float | None, list[LayerWork]]:
    case = step.case
    if step.learned is not None:
        return step.learned.work(case.tokens, dtype=case.dtype, device=case.device)
    ours, twins = layers.of(case)
    steps = math.ceil(DECODED_PASSES / len(ours)) if case.benchmark == "decode" else 1
    found: dict[float | None, list[LayerWork]] = {None: spread_work(twins, None, case.tokens, steps=steps)}
    return found | {tau: spread_work(ours, tau, case.tokens, steps=steps) for tau in step.taus}


def _depth(case: Case) -> int:
    if case.benchmark != "decode":
        return 1
    config = case.config
    weights = 3 * config.hidden_size * config.intermediate_size * config.num_ffn_experts * case.dtype.itemsize
    return min(math.ceil(DECODED_BYTES / weights), model_config(case.size).num_hidden_layers)
