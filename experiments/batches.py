"""Table A over the size of the batch: what one expert of each type costs from 1 token to 65,536.

An FFN expert has weights to read, whatever the tokens; the zero-computation experts have none to speak of.
"""

from typing import TYPE_CHECKING, Any

import torch
from rich.progress import track

from moepp.bench import Row, layer_config, table_a
from moepp.bench.measure import Case
from moepp.bench.paper import MILLISECONDS, TOKENS
from moepp.config import EXPERT_TYPES

from .experiment import Experiment
from .lab import Lab
from .layer_times import ratio
from .outcomes import all_of, below
from .result import Claim, Result, Table
from .text import level

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BATCHES = (1, 4, 16, 64, 256, 1024, 4096, 16_384, 65_536)
ROUNDS = 15
SECONDS = 3.0
"""For each batch size, after which five rounds are enough."""
FREE = 0.05
"""Of the FFN expert's time: what counts as free of cost."""
SIGNS = {"ffn": "o", "constant": "s", "copy": "^", "zero": "v"}


def result(lab: Lab) -> Result:
    """Every type's time at every size."""
    config = layer_config(lab.scale.layer)
    dtype = torch.float32 if lab.device == "cpu" else torch.bfloat16
    data: dict[str, Any] = {}
    for tokens in track(BATCHES, "batch sizes", console=lab.pool.console, transient=True):
        case = Case(benchmark="experts", size=lab.scale.layer, config=config, dtype=dtype, device=lab.device,
                    tokens=tokens, routing="synthetic")  # fmt: skip
        rows = {row.variant: row for row in table_a(case, rounds=ROUNDS, budget=SECONDS)}
        data[str(tokens)] = {kind: _numbers(rows[f"type:{kind}"]) for kind in EXPERT_TYPES}
    bytes_ = 3 * config.hidden_size * config.intermediate_size * dtype.itemsize
    found = {
        (kind, int(size)): ratio(one, times["ffn"])
        for size, times in data.items()
        for kind, one in times.items()
        if kind != "ffn"
    }
    kind, size = most = max(found, key=lambda at: found[at].mean)
    claims = [
        Claim(
            f"A zero, copy or constant expert costs less than {FREE:.0%} of an FFN expert at every batch size.",
            all_of(below(one, FREE) for one in found.values()),
            f"The most is {level(found[most], '%', times=100, digits=1)}, from the quartiles of both: a {kind} expert "
            f"at {size:,} tokens.",
        )
    ]
    return Result(
        tables=[_table(data)],
        claims=claims,
        limits=[
            f"One expert of each type, forward, D = {config.hidden_size}, F = {config.intermediate_size}, "
            f"{str(dtype).removeprefix('torch.')}, fresh weights: {bytes_ / 1e6:.0f} MB in an FFN expert. The same "
            "weights are used again and again; what fits a cache is then read from there.",
            f"Medians of up to {ROUNDS} rounds, of at least 5 where a size took longer than {SECONDS:g} s.",
            "A zero or copy expert alone is measured as the pass over the tokens that all zero-computation experts of "
            "a layer share; its own cost in such a pass is nothing.",
            f"The paper's Table A is of {TOKENS:,} tokens on one A100.",
        ],
        data=data,
    )


def _numbers(row: Row) -> dict[str, float]:
    assert row.median_s is not None, row.reason
    assert row.iqr_s is not None
    return {"ms": 1e3 * row.median_s, "iqr_ms": 1e3 * row.iqr_s}


def shares(times: dict[str, Any]) -> dict[str, float]:
    """Each zero-computation type's time over the FFN expert's."""
    return {kind: one["ms"] / times["ffn"]["ms"] for kind, one in times.items() if kind != "ffn"}


def _table(data: dict[str, Any]) -> Table:
    rows = []
    paper = {kind: MILLISECONDS[f"type:{kind}"] for kind in SIGNS}
    for size, times in data.items():
        row = [f"{int(size):,}", f"{times['ffn']['ms']:.4g} ± {times['ffn']['iqr_ms']:.2g}"]
        row.append(f"{1e3 * times['ffn']['ms'] / int(size):.4g}")
        for kind, share in shares(times).items():
            row.append(f"{times[kind]['ms']:.4g} ({share:.2%})")
        rows.append(row)
    theirs = ["the paper, 2,048 on an A100", f"{paper['ffn']:.4g}", f"{1e3 * paper['ffn'] / TOKENS:.4g}"]
    kinds = list(shares(next(iter(data.values()))))
    theirs += [f"{paper[kind]:.4g} ({paper[kind] / paper['ffn']:.2%})" for kind in kinds]
    return Table(
        "Measured, the paper's last",
        ["tokens", "FFN, ms", "FFN, μs a token", *(f"{kind}, ms (of FFN)" for kind in kinds)],
        [*rows, theirs],
        "Milliseconds a batch, median; ± the distance between quartiles.",
    )


def draw(found: Result, figure: "Figure") -> None:
    """Times over the size of the batch, and the zero-computation experts' as shares of the FFN expert's."""
    from moepp.analyze.plots import TYPE_COLOURS

    left, right = figure.subplots(1, 2)
    sizes = [int(size) for size in found.data]
    for kind, sign in SIGNS.items():
        style = {"color": TYPE_COLOURS[kind], "marker": sign, "markersize": 4, "label": kind.replace("ffn", "FFN")}
        left.plot(sizes, [times[kind]["ms"] for times in found.data.values()], **style)
        if kind != "ffn":
            right.plot(sizes, [100 * shares(times)[kind] for times in found.data.values()], **style)
    left.set_yscale("log")
    left.set_ylabel("one expert, forward (ms)")
    right.set_ylabel("of the FFN expert's time (%)")
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes[::2], [f"{size:,}" for size in sizes[::2]])
        axes.set_xlabel("tokens in the batch")
        axes.legend()


EXPERIMENT = Experiment(
    name="batches",
    title="Check 4: Table A over the size of the batch",
    variants=[],
    result=result,
    draw=draw,
)

if __name__ == "__main__":
    from .entry import main

    main(EXPERIMENT.name)
