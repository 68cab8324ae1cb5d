"""Table A: one expert of each type over a batch."""

from typing import TYPE_CHECKING

from moepp.bench import table_a
from moepp.bench.paper import MILLISECONDS

from .experiment import Experiment
from .lab import Lab
from .layer_times import draw_times, layer_times, milliseconds, numbers, ratio
from .outcomes import below
from .result import Claim, Result, Table
from .text import level

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LABELS = {"type:zero": "zero", "type:copy": "copy", "type:constant": "constant", "type:ffn": "FFN"}
FFN = "type:ffn"
PUBLISHED = {name: MILLISECONDS[name] / MILLISECONDS[FFN] for name in LABELS}
"""Over an FFN expert's time."""


def result(lab: Lab) -> Result:
    """Ours beside the paper's."""
    times = layer_times(lab, "experts", table_a, list(LABELS))
    data = numbers(times)
    share = {dtype: {name: ratio(one[name], one[FFN]) for name in LABELS} for dtype, one in data.items()}
    rows = []
    for name, label in LABELS.items():
        row = [label, f"{MILLISECONDS[name]:.4g}", f"{PUBLISHED[name]:.2%}"]
        for dtype, one in times.items():
            row += [milliseconds(one[name]), f"{share[dtype][name].mean:.2%}"]
        rows.append(row)
    head = ["", "the paper: ms on an A100", "of FFN"]
    head += [text for dtype in times for text in (f"{dtype}: ms", "of FFN")]
    table = Table("Measured, beside the paper's", head, rows, "Median ± distance between quartiles.")
    bound = max(published for name, published in PUBLISHED.items() if name != FFN)
    worst = {
        dtype: max((one[name] for name in LABELS if name != FFN), key=lambda found: found.mean)
        for dtype, one in share.items()
    }
    claims = [
        Claim(
            f"A zero-computation expert takes at most {bound:.1%} of an FFN expert's time, as the paper's constant "
            f"expert does ({dtype}).",
            below(slowest, bound),
            f"The slowest type takes {level(slowest, '%', times=100, digits=2)}, from the quartiles of both.",
        )
        for dtype, slowest in worst.items()
    ]
    limits = [
        "Here a layer's zero-computation experts make one pass over the tokens together, and a zero or a copy expert "
        "alone is charged all of it: they are free only beside others. The paper's zero and copy experts, at a tenth "
        "of a microsecond, touch no token at all.",
        "Ratios depend on the machine: an FFN expert is bound by arithmetic, the others by memory.",
    ]
    return Result(tables=[table], claims=claims, limits=limits, data=data)


def draw(found: Result, figure: "Figure") -> None:
    """Times by type; the types are decades apart."""
    draw_times(found, figure, LABELS)


EXPERIMENT = Experiment(
    name="table_a",
    title="Table A: time of one expert of each type",
    variants=[],
    result=result,
    draw=draw,
)

if __name__ == "__main__":
    from .entry import main

    main(EXPERIMENT.name)
