"""Table B: what the gating residual costs a router of 16 experts."""

from typing import TYPE_CHECKING

from moepp.bench import table_b
from moepp.bench.paper import FLOPS, MILLISECONDS

from .experiment import Experiment
from .lab import Lab
from .layer_times import draw_times, layer_times, milliseconds, numbers, ratio
from .outcomes import below
from .result import Claim, Result, Table
from .text import level

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLAIN, RESIDUAL = "router:plain", "router:residual"
LABELS = {PLAIN: "router", RESIDUAL: "router with gating residual"}


def result(lab: Lab) -> Result:
    """Ours beside the paper's."""
    times = layer_times(lab, "router", table_b, list(LABELS))
    data = numbers(times)
    flops = {name: next(iter(times.values()))[name].flops for name in LABELS}
    rows = [
        [
            label,
            f"{FLOPS[name]:,}",
            f"{flops[name]:,}",
            f"{MILLISECONDS[name]:.4g}",
            *(milliseconds(one[name]) for one in times.values()),
        ]
        for name, label in LABELS.items()
    ]
    head = ["", "the paper: FLOPs", "FLOPs", "the paper: ms on an A100", *(f"{dtype}: ms" for dtype in times)]
    published = MILLISECONDS[RESIDUAL] / MILLISECONDS[PLAIN] - 1
    claims = [
        Claim(
            "The routers' FLOPs are the paper's.",
            "agrees" if flops == FLOPS else "disagrees",
            f"{flops[PLAIN]:,} and {flops[RESIDUAL]:,}; a multiply-add counts one, as there.",
        )
    ]
    for dtype, one in data.items():
        found = ratio(one[RESIDUAL], one[PLAIN])
        claims.append(
            Claim(
                f"With the gating residual a router takes no more than the paper's {published:.1%} longer ({dtype}).",
                below(found, 1 + published),
                f"{level(found, digits=3)} of a router's time, from the quartiles of both.",
            )
        )
    limits = [
        "Time is of the whole router: the product, softmax, sorting and the weights, in float32 whatever the tokens' "
        "dtype. The paper does not say what its time is of."
    ]
    table = Table("Measured, beside the paper's", head, rows, "Median ± distance between quartiles.")
    return Result(tables=[table], claims=claims, limits=limits, data=data)


def draw(found: Result, figure: "Figure") -> None:
    """Both routers' times."""
    draw_times(found, figure, LABELS)


EXPERIMENT = Experiment(
    name="table_b",
    title="Table B: the router with and without its memory",
    variants=[],
    result=result,
    draw=draw,
)

if __name__ == "__main__":
    from .entry import main

    main(EXPERIMENT.name)
