"""Table A over the size of the batch: what one expert of each type costs from 1 token to 65,536.

At small batches an FFN expert's time is that of reading its weights, whatever the tokens: the zero-computation experts
have none to speak of. From where on its time follows the tokens is where it stops being so.
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
from .result import Claim, Result, Table

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
    weights = 3 * config.hidden_size * config.intermediate_size
    bytes_ = weights * dtype.itemsize
    knee = half_time(data)
    most, kind, size = max(
        (share, kind, int(size)) for size, times in data.items() for kind, share in shares(times).items()
    )
    largest = data[str(BATCHES[-1])]["ffn"]["seconds"] / BATCHES[-1]
    claims = [
        Claim(
            f"A zero, copy or constant expert costs less than {FREE:.0%} of an FFN expert at every batch size.",
            "disagrees" if most > FREE else "agrees",
            f"At most {most:.1%}: a {kind} expert at {size:,} tokens.",
        ),
        Claim(
            f"An FFN expert's time is at first that of reading its weights: {BATCHES[1]} tokens take less than twice "
            "as long as one.",
            "agrees" if knee > BATCHES[1] else "disagrees",
            f"One token takes as long as {data['1']['ffn']['seconds'] / largest:.0f} tokens of a large batch, "
            f"{bytes_ / data['1']['ffn']['seconds'] / 1e9:.1f} GB of weights a second; from {knee:,} tokens on, most "
            "of the time follows the tokens.",
        ),
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
    return {"seconds": row.median_s, "spread": row.iqr_s}


def shares(times: dict[str, Any]) -> dict[str, float]:
    """Each zero-computation type's time over the FFN expert's."""
    return {kind: one["seconds"] / times["ffn"]["seconds"] for kind, one in times.items() if kind != "ffn"}


def half_time(data: dict[str, Any]) -> int:
    """The smallest batch at which an FFN expert takes at least twice as long as for one token."""
    return next(
        (size for size in BATCHES if data[str(size)]["ffn"]["seconds"] >= 2 * data["1"]["ffn"]["seconds"]), BATCHES[-1]
    )


def _table(data: dict[str, Any]) -> Table:
    rows = []
    paper = {kind: MILLISECONDS[f"type:{kind}"] for kind in SIGNS}
    for size, times in data.items():
        row = [f"{int(size):,}", f"{1e3 * times['ffn']['seconds']:.4g} ± {1e3 * times['ffn']['spread']:.2g}"]
        row.append(f"{1e6 * times['ffn']['seconds'] / int(size):.4g}")
        for kind, share in shares(times).items():
            row.append(f"{1e3 * times[kind]['seconds']:.4g} ({share:.2%})")
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
        left.plot(sizes, [1e3 * times[kind]["seconds"] for times in found.data.values()], **style)
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
