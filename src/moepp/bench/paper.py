"""The paper's Tables A and B: one expert of each type over a batch, and the router with and without its memory.

T tokens, D hidden, F intermediate.
"""

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from ..config import EXPERT_TYPES, ExpertType, MoEConfig
from ..layers import MoE, Router, Routing
from .measure import Case, checked, peak_rows, relative_error
from .method import interleave
from .peaks import dense_products
from .router import router_error, router_flops
from .rows import Row
from .work import on_backend, twin_layers

TOKENS = 2048
EXPERTS_OF_TABLE_B = 16
MILLISECONDS = {
    "type:zero": 9.589e-5,
    "type:copy": 1.236e-4,
    "type:constant": 3.206e-2,
    "type:ffn": 1.050,
    "router:plain": 4.264e-2,
    "router:residual": 4.366e-2,
}
"""The paper's, on one A100, by our variants' names."""
FLOPS = {"router:plain": 50_331_648, "router:residual": 50_888_704}


def table_a(case: Case, *, rounds: int, budget: float | None) -> list[Row]:
    """Each type's cost as a layer pays it, all T tokens going to one expert of that type.

    A zero or copy expert is part of the one pass that the zero-computation experts make over the tokens, so either
    alone costs that pass. Only in a layer with other experts beside it is it really free.
    """
    runs, rows = {}, {}
    for kind in EXPERT_TYPES:
        layer = _layer_of(kind, case)
        x = torch.randn(case.tokens, case.config.hidden_size).to(layer.router.weight)
        routing = _all_to_one(case.tokens, layer, kind, x.device)
        with torch.inference_mode():
            truth = on_backend(layer, "reference").apply_experts(x, routing)
            run = _apply(layer, x, routing)
            error = relative_error([run()], [truth])
        name = f"type:{kind}"
        rows[name] = checked(case.row(name, "forward", routing=None, max_relative_error=error))
        runs[name] = run
    return _timed(case, runs, rows, rounds, budget)


def table_b(case: Case, *, rounds: int, budget: float | None) -> list[Row]:
    """A router over 16 experts, with and without the gating residual."""
    config = dataclasses.replace(
        case.config,
        num_ffn_experts=EXPERTS_OF_TABLE_B,
        num_constant_experts=0,
        num_copy_experts=0,
        num_zero_experts=0,
    )
    routers = {f"router:{name}": Router(config, first=name == "plain").to(case.device, case.dtype) for name in NAMES_B}
    x = torch.randn(case.tokens, config.hidden_size).to(case.device, case.dtype)
    previous = torch.randn(case.tokens, EXPERTS_OF_TABLE_B, device=case.device)
    runs: dict[str, Callable[[], object]] = {
        name: lambda router=router: router(x, previous) for name, router in routers.items()
    }
    rows = {}
    for name, router in routers.items():
        error, flops = router_error(router, x, previous), router_flops(router, case.tokens)
        rows[name] = checked(case.row(name, "forward", routing=None, max_relative_error=error, flops=flops))
    return _timed(case, runs, rows, rounds, budget)


NAMES_B = ("plain", "residual")


def _layer_of(kind: ExpertType, case: Case) -> MoE:
    """One expert of this type; a layer has an FFN expert in any case, to whom nothing goes."""
    counts = {f"num_{other}_experts": int(other == kind) for other in EXPERT_TYPES if other != "ffn"}
    config: MoEConfig = dataclasses.replace(case.config, num_ffn_experts=1, top_k=1, **counts)
    (layer,), _ = twin_layers(config, 1, dtype=case.dtype, device=case.device)
    return layer


def _all_to_one(tokens: int, layer: MoE, kind: ExpertType, device: torch.device) -> Routing:
    layout = layer.config.layout()
    expert = torch.full((tokens, 1), layout.indices(kind).start, device=device)
    probs = torch.full((tokens, layout.num_experts), 1 / layout.num_experts, device=device)
    return Routing(probs.log(), probs, expert, torch.ones(tokens, 1, device=device), torch.ones_like(expert).bool())


def _apply(layer: MoE, x: Tensor, routing: Routing) -> Callable[[], Tensor]:
    """The expert alone: an empty FFN dispatch is no part of a zero-computation expert."""
    if layer.config.layout().num_zero_computation == 0:
        return lambda: layer.apply_experts(x, routing)
    return lambda: layer.zero_computation(x, routing)


def _timed(
    case: Case, runs: dict[str, Callable[[], object]], rows: dict[str, Row], rounds: int, budget: float | None
) -> list[Row]:
    products = dense_products(case.config, case.dtype, case.device)
    right = {name: run for name, run in runs.items() if rows[name].reason is None}
    with torch.inference_mode():
        timings = interleave(
            right | {f"peak:{name}": run for name, run in products.items()}, rounds=rounds, budget=budget
        )
    found = peak_rows(case, timings, products)
    for name, row in rows.items():
        if row.reason is None:
            timing = timings[name]
            rate = row.tokens / timing.median
            row = dataclasses.replace(row, median_s=timing.median, iqr_s=timing.iqr, tokens_per_s=rate)
        found.append(row)
    return found
