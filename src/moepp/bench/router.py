"""The benchmark ``router``: what choosing costs, and what it costs of the whole layer.

T tokens, D hidden, E all experts.

Rows: ``moepp:router`` and ``vanilla:router`` are the routers alone, ``moepp:router-no-residual`` MoE++'s without
Eq. 6's second term. ``moepp:layer`` is the whole layer on one backend and ``moepp:ffn`` its FFN experts at the routing
of that layer; ``moepp:router+zero`` is their difference, round by round: the router, the zero-computation experts and
all that is between them. Its ``share_of_layer`` is the median of the rounds' shares.
"""

import dataclasses
from collections.abc import Callable, Sequence

import torch

from ..layers import Router
from ..ops import expert_ffn
from .layers import Works
from .measure import Case, Say, checked, peak_rows, relative_error
from .method import Timing, interleave
from .peaks import dense_products
from .rows import Row
from .work import LayerWork, on_backend


def measure_router(
    case: Case,
    works: Works,
    backends: Sequence[str],
    *,
    rounds: int,
    budget: float | None,
    say: Say = lambda _: None,
) -> list[Row]:
    """All rows of the benchmark.

    Args:
        works: one MoE++ layer's at each tau, with the previous layer's logits, and its vanilla twin's under None.
    """
    (work, *_), (twin, *_) = next(one for tau, one in works.items() if tau is not None), works[None]
    router = work.layer.router
    runs: dict[str, Callable[[], object]] = {
        "moepp:router": lambda: router(work.x, work.previous),
        "moepp:router-no-residual": lambda: router(work.x),
        "vanilla:router": lambda: twin.layer.router(twin.x),
    }
    routers = {"moepp:router": (router, work, work.previous), "moepp:router-no-residual": (router, work, None)}
    routers["vanilla:router"] = (twin.layer.router, twin, None)
    rows, wrong = {}, []
    for name, (one, item, previous) in routers.items():
        row = case.row(name, "forward", max_relative_error=router_error(one, item.x, previous))
        wrong += [] if (row := checked(row)).reason is None else [row]
        rows[name] = row
    runs = {name: run for name, run in runs.items() if rows[name].reason is None}
    pairs = []
    for tau, (item, *_) in ((tau, one) for tau, one in works.items() if tau is not None):
        truths = [_layer(item, "reference"), _ffn(item, "reference")]
        for backend in backends:
            say(f"checking {backend} at tau {tau:g}")
            layer, ffn = _layer(item, backend), _ffn(item, backend)
            with torch.inference_mode():
                error = relative_error([layer(), ffn()], [truth() for truth in truths])
            row = case.row(f"moepp:layer:{backend}", "forward", tau=tau, max_relative_error=error)
            if (row := checked(row)).reason is not None:
                wrong.append(row)
                continue
            alone = dataclasses.replace(row, variant=f"moepp:ffn:{backend}")
            keys = f"layer {backend} {tau:g}", f"ffn {backend} {tau:g}"
            for key, one, run in zip(keys, (row, alone), (layer, ffn), strict=True):
                rows[key], runs[key] = one, run
            pairs.append((*keys, dataclasses.replace(row, variant=f"moepp:router+zero:{backend}")))
    say("timing")
    products = dense_products(case.config, case.dtype, case.device)
    with torch.inference_mode():
        timings = interleave(
            runs | {f"peak:{name}": run for name, run in products.items()}, rounds=rounds, budget=budget
        )
    found = [*peak_rows(case, timings, products), *(_timed(rows[name], timings[name]) for name in runs)]
    return [*found, *(_rest(row, timings[whole], timings[ffn]) for whole, ffn, row in pairs), *wrong]


def router_error(router: Router, x: torch.Tensor, previous: torch.Tensor | None) -> float:
    """The logits' deviation from Eq. 6 in float64."""
    with torch.inference_mode():
        expected = x.double() @ router.weight.double().T
        if router.residual is not None and previous is not None:
            expected = expected + previous.double() @ router.residual.weight.double().T
        return relative_error([router(x, previous).logits], [expected.float()])


def router_flops(router: Router, tokens: int) -> int:
    """As the paper counts them: one for a multiply-add, and for each sum of the two terms of Eq. 6."""
    experts, width = router.weight.shape
    flops = tokens * experts * width
    return flops if router.residual is None else flops + tokens * experts * (experts + 1)


def _layer(work: LayerWork, backend: str) -> Callable[[], torch.Tensor]:
    layer = on_backend(work.layer, backend)
    return lambda: work.forward(layer, work.x)


def _ffn(work: LayerWork, backend: str) -> Callable[[], torch.Tensor]:
    layer, routing = on_backend(work.layer, backend), work.routing

    def run() -> torch.Tensor:
        y = expert_ffn(
            work.x,
            routing.expert,
            routing.weight,
            layer.experts.gate_up_proj,  # pyright: ignore[reportArgumentType]
            layer.experts.down_proj,  # pyright: ignore[reportArgumentType]
            backend=backend,
        )
        return y if layer.shared_experts is None else y + layer.apply_shared(work.x, routing)

    return run


def _rest(row: Row, whole: Timing, ffn: Timing) -> Row:
    rest = [a - b for a, b in zip(whole.seconds, ffn.seconds, strict=True)]
    share = Timing.of(tuple(part / all_ for part, all_ in zip(rest, whole.seconds, strict=True))).median
    return _timed(dataclasses.replace(row, share_of_layer=share), Timing.of(tuple(rest)))


def _timed(row: Row, timing: Timing) -> Row:
    rate = row.tokens / timing.median if timing.median > 0 else None  # a difference may be lost in the noise
    return dataclasses.replace(row, median_s=timing.median, iqr_s=timing.iqr, tokens_per_s=rate)
