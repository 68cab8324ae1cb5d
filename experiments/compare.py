"""Variants side by side: what they route, what they cost, how good they are, and paired differences to some of them."""

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from .lab import Lab
from .paired import Paired, interval
from .result import Outcome, Table
from .text import agreement, nats
from .variants import MOEPP, VANILLA, Variant

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def compared(
    lab: Lab, variants: Mapping[str, Variant], bases: Sequence[str], published: Mapping[str, float] | None = None
) -> tuple[list[Table], dict[str, dict[str, Any]]]:
    """A table over the mixture and one by source, and the numbers behind them by row.

    Args:
        variants: by the name of their row.
        bases: the rows from which all others are subtracted, the first by source too.
        published: the paper's average score by row.
    """
    data = {name: _numbers(lab, variant) for name, variant in variants.items()}
    rows, by_source = [], []
    sources = list(next(iter(data.values()))["bits_per_byte"])
    for name, variant in variants.items():
        one = data[name]
        row = [
            name,
            *([] if published is None else [str(published[name]) if name in published else ""]),
            f"{one['ffn_share_target']:.1%}",
            f"{one['ffn_share']:.1%}",
            f"{one['expert_flops']:.2f}",
            f"{statistics.fmean(one['loss'].values()):.4f}",
        ]
        rows.append(
            row + ["" if base == name else nats(lab.difference(variant, variants[base])) for base in bases],
        )
        base = data[bases[0]]["bits_per_byte"]
        cells = []
        for source, values in one["bits_per_byte"].items():
            cell = f"{statistics.fmean(values.values()):.4f}"
            if name != bases[0]:
                cell += f" ({plus_minus(interval(differences(values, base[source])))})"
            cells.append(cell)
        by_source.append([name, *cells])
    head = [
        "",
        *([] if published is None else ["the paper's average score"]),
        "FFN share aimed at",
        "reached",
        "expert FLOPs",
        "validation loss",
        *(f"− {base}, 95 %" for base in bases),
    ]
    note = "Expert FLOPs: of training, over vanilla's. Loss: nats per token, mean over the seeds."
    tables = [
        Table("Measured" if published is None else "Measured, beside the paper's", head, rows, note),
        Table(f"Bits per byte by source, in brackets − {bases[0]} with half of its 95 % interval",
              ["", *sources], by_source),
    ]  # fmt: skip
    return tables, data


def _numbers(lab: Lab, variant: Variant) -> dict[str, Any]:
    records, vanilla = lab.records(variant), lab.records(VANILLA)
    spent, theirs = (statistics.fmean(one.expert_flops for one in runs.values()) for runs in (records, vanilla))
    first = next(iter(records.values()))
    return {
        "ffn_share_target": first.ffn_share_target,
        "ffn_share": statistics.fmean(statistics.fmean(one.ffn_share) for one in records.values()),
        "expert_flops": spent / theirs,
        "loss": {seed: one.loss for seed, one in records.items()},
        "bits_per_byte": {
            source: {seed: one.bits_per_byte[source] for seed, one in records.items()} for source in first.bits_per_byte
        },
    }


def differences(ours: Mapping[Any, float], theirs: Mapping[Any, float]) -> list[float]:
    """By seed, over the seeds that both have; their names are numbers, or text where they were read from JSON."""
    return [value - theirs[seed] for seed, value in ours.items() if seed in theirs]


def plus_minus(difference: Paired) -> str:
    """``+0.0123 ± 0.0045``; it is unresolved where the second is more."""
    return f"{difference.mean:+.4f} ± {difference.high - difference.mean:.4f}"


def all_agree(found: Sequence[Paired], claimed: Literal["lower", "higher"]) -> Outcome:
    """Of a claim that several differences have one sign: one against it is enough to disagree."""
    outcomes = {agreement(difference, claimed) for difference in found}
    if "disagrees" in outcomes:
        return "disagrees"
    return "agrees" if outcomes == {"agrees"} else "unresolved"


def setup(lab: Lab) -> str:
    """How the scale's models depart from the paper's, as a limit."""
    recipe = lab.run(MOEPP, lab.scale.seeds[0]).recipe()
    model = recipe.model
    tokens = recipe.training["max_steps"] * recipe.samples_per_step * recipe.data.sequence_length
    return (
        f"The paper trains 1B models on 100B tokens once and scores tasks; here {model['num_hidden_layers']} layers of "
        f"width {model['hidden_size']} see {tokens / 1e6:.2g}M tokens, {len(lab.scale.seeds)} seeds each, and what is "
        f"compared is the loss on held-out text. Both models use combine={model.get('combine')}, "
        f"γ = {model.get('capacity_factor')} and β = {model.get('router_aux_loss_coef')} where the paper has Eq. 1's "
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
