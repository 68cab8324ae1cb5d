"""Variants side by side: what they route, what they cost, how good they are, and paired differences to some of them."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .lab import Lab
from .paired import Paired, interval, paired
from .record import Record
from .result import Table
from .text import said
from .variants import MOEPP, VANILLA, Variant

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Numbers = dict[str, dict[str, Any]]
"""By row: what is known of a model, by seed where the seeds differ."""


def compared(
    lab: Lab,
    variants: Mapping[str, Variant],
    bases: Sequence[str] = (),
    published: Mapping[str, float] | None = None,
    *,
    unit: Variant = VANILLA,
) -> tuple[list[Table], Numbers]:
    """A table over the mixture and one by source, and the numbers behind them by row.

    Args:
        variants: by the name of their row.
        bases: the rows from which all others are subtracted, the first by source too.
        published: the paper's average score by row.
        unit: whose expert FLOPs are 1.
    """
    spent = _mean(lab, unit, lambda one: one.expert_flops)
    data = {name: _numbers(lab, variant, spent) for name, variant in variants.items()}
    rows = []
    for name, one in data.items():
        by_layer = [share for record in lab.records(variants[name]).values() for share in record.ffn_share]
        rows.append(
            [
                name,
                *([] if published is None else [str(published.get(name, ""))]),
                f"{one['ffn_share_target']:.1%}",
                f"{statistics.fmean(by_layer):.1%} ({min(by_layer):.0%} to {max(by_layer):.0%})",
                f"{one['load_imbalance']:.2f}",
                f"{one['expert_flops']:.2f}",
                f"{one['parameters'] / 1e6:.2f}",
                f"{statistics.fmean(one['loss'].values()):.4f}",
                *("" if base == name else said(paired(one["loss"], data[base]["loss"])) for base in bases),
            ]
        )
    head = [
        "",
        *([] if published is None else ["the paper's average score"]),
        *("FFN share aimed at", "reached (layers)", "load, max/mean", "expert FLOPs", "parameters, millions"),
        *("validation loss", *(f"− {base}, 95 %" for base in bases)),
    ]
    note = (
        "Means over seeds. FFN share: of the choices on held-out text. Load: of the busiest FFN expert over the mean, "
        "at the end of training, in the worst layer. Expert FLOPs: of training, over those of "
        f"{unit.name}. Loss: nats per token."
    )
    title = "Measured" if published is None else "Measured, beside the paper's"
    return [Table(title, head, rows, note), _by_source(data, bases[0] if bases else None)], data


def _by_source(data: Numbers, base: str | None) -> Table:
    rows = []
    for name, one in data.items():
        cells = []
        for source, values in one["bits_per_byte"].items():
            cell = f"{statistics.fmean(values.values()):.4f}"
            if base not in (None, name):
                cell += f" ({plus_minus(paired(values, data[base]['bits_per_byte'][source]))})"
            cells.append(cell)
        rows.append([name, *cells])
    title = "Bits per byte by source" + (f", in brackets − {base} with half of its 95 % interval" if base else "")
    return Table(title, ["", *next(iter(data.values()))["bits_per_byte"]], rows)


def _numbers(lab: Lab, variant: Variant, unit: float) -> dict[str, Any]:
    records = lab.records(variant)
    first = next(iter(records.values()))
    return {
        "ffn_share_target": first.ffn_share_target,
        "ffn_share": shares(lab, variant),
        "load_imbalance": _mean(lab, variant, lambda one: one.curve[-1]["load_imbalance"]),
        "expert_flops": _mean(lab, variant, lambda one: one.expert_flops) / unit,
        "parameters": first.parameters,
        "loss": {seed: one.loss for seed, one in records.items()},
        "bits_per_byte": {
            source: {seed: one.bits_per_byte[source] for seed, one in records.items()} for source in first.bits_per_byte
        },
    }


def shares(lab: Lab, variant: Variant) -> dict[int, float]:
    """The FFN experts' share of the choices on held-out text, averaged over layers, by seed."""
    return {seed: statistics.fmean(one.ffn_share) for seed, one in lab.records(variant).items()}


def _mean(lab: Lab, variant: Variant, of: Callable[[Record], float]) -> float:
    return statistics.fmean(map(of, lab.records(variant).values()))


def plus_minus(difference: Paired) -> str:
    """``+0.0123 ± 0.0045``; it is unresolved where the second is more."""
    return f"{difference.mean:+.4f} ± {difference.high - difference.mean:.4f}"


def setup(lab: Lab, variant: Variant = MOEPP) -> str:
    """How the scale's models depart from the paper's, as a limit.

    Args:
        variant: one that is trained for as long as those compared.
    """
    run = lab.run(variant, lab.scale.seeds[0])
    model, steps = run.recipe().model, run.recipe().training["max_steps"]
    return (
        f"{model['num_hidden_layers']} layers of width {model['hidden_size']} see {run.tokens:,} tokens in {steps:,} "
        f"steps, {len(lab.scale.seeds)} seeds each, and what is compared is the loss on held-out text; the paper "
        "trains 1B models on 100B tokens once and scores tasks. What differs here may vanish, or turn round, in a run "
        f"of that length. Where nothing else is said, combine={model.get('combine')}, "
        f"γ = {model.get('capacity_factor')} and β = {model.get('router_aux_loss_coef')}, where the paper has Eq. 1's "
        "probabilities, 1.1 and 0.01."
    )


def draw_differences(
    axes: "Axes", rows: Mapping[str, Sequence[float]], *, colour: str, marker: str = "o", shift: float = 0.0
) -> None:
    """One row a comparison: each seed's difference, and the mean with its 95 % interval."""
    for place, values in enumerate(rows.values()):
        found, y = interval(values), place + shift
        if len(values) > 1:
            axes.plot([found.low, found.high], [y, y], "-", color=colour, linewidth=1.5)
        axes.plot(found.mean, y, "|", color=colour, markersize=12, markeredgewidth=2)
        axes.plot(values, [y] * len(values), marker, color=colour, alpha=0.6, markersize=4, markeredgewidth=0)
    axes.axvline(0, color="#666666", linewidth=1)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(len(rows) - 0.5, -0.5)
