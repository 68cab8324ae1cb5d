"""How fast trained models' experts are: FFN and zero-computation experts of all layers together, routers left out."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from .method import Timing, interleave
from .work import LayerWork, capture_work, run_experts, synthetic_work


@dataclass(frozen=True)
class Throughput:
    """The experts alone, forward, all layers, at one kind of routing."""

    tokens_per_second: float
    spread: float
    """Distance between quartiles over the median."""
    ffn_per_token: float
    """FFN experts per token in what was timed."""
    speedup: float
    """Over the baseline at the same kind of routing, in the same run."""
    bound: float
    """The FLOPs of the baseline's FFN experts, routed and shared, over ours: what the speed-up could be if nothing else
    cost anything; infinite where no token has an FFN expert."""


def expert_throughput(
    models: Mapping[str, nn.Module], input_ids: Tensor, *, baseline: str, rounds: int
) -> dict[str, dict[str, Throughput]]:
    """Times all models in turns on the same tokens.

    Returns:
        By model and routing: ``learned``, what the model chooses, and ``synthetic``, tau's balance exactly.
    """
    work: dict[tuple[str, str], list[LayerWork]] = {}
    for name, model in models.items():
        learned = capture_work(model, input_ids=input_ids, use_cache=False)
        work[name, "learned"] = learned
        work[name, "synthetic"] = synthetic_work(learned)
    keys = {f"{name} {routing}": (name, routing) for name, routing in work}
    timings = interleave({key: lambda w=work[names]: run_experts(w) for key, names in keys.items()}, rounds=rounds)
    found: dict[str, dict[str, Throughput]] = {name: {} for name in models}
    for key, (name, routing) in keys.items():
        other = timings[f"{baseline} {routing}"]
        found[name][routing] = _one(
            timings[key], other, work[name, routing], work[baseline, routing], input_ids.numel()
        )
    return found


def _one(
    timing: Timing, baseline: Timing, work: Sequence[LayerWork], baselines: Sequence[LayerWork], tokens: int
) -> Throughput:
    ours, theirs = (sum(item.ffn_flops for item in items) for items in (work, baselines))
    return Throughput(
        tokens_per_second=tokens / timing.median,
        spread=timing.iqr / timing.median,
        ffn_per_token=statistics.mean(item.ffn_per_token for item in work),
        speedup=baseline.median / timing.median,
        bound=theirs / ours if ours else math.inf,
    )
