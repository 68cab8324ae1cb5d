"""Table C: what a trained model loses when experts of some types are disabled at inference.

Two things can become of a disabled expert's slot. *Re-routed*: the token takes the expert that the router ranks next,
and weights follow from what was chosen, so nothing is missing, but an FFN expert may have to do what a copy did.
*Lost*: the slot stays empty, as when an expert is full. The other slot keeps the weight it had: under
``combine="renormalize"`` the token's weights then no longer sum to one, and the layer adds less to the residual stream.
(Dividing again would be a third thing: the one expert left would count for two.) Losing zero experts changes nothing
by construction, which is the control.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from rich.progress import track
from torch import Tensor

from moepp.config import ExpertLayout, ExpertType
from moepp.layers import Routing, RoutingStats
from moepp.layers.capacity import apply_keep
from moepp.model import MoEPPForCausalLM

from . import paper
from .compare import draw_differences, plus_minus
from .experiment import Experiment
from .held_out import measure, spread
from .lab import Lab
from .outcomes import above, all_of
from .paired import Paired, paired
from .result import Claim, Result, Table
from .text import nats, said
from .variants import MOEPP

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS: tuple[ExpertType, ...] = ("zero", "copy", "constant")
ALL, NONE_LEFT = "all", "−all three"
WAYS = ("re-routed", "lost")
_BLOCKS = 32
"""Of each source's held-out text."""


def disabled_types(name: str) -> list[ExpertType]:
    """Of a row of the paper's table: ``−zero, copy``."""
    if name == NONE_LEFT:
        return list(KINDS)
    return [kind for kind in KINDS if kind in name]


def intervention(way: str, kinds: Sequence[ExpertType], layout: ExpertLayout, device: str) -> dict[str, Any]:
    """Arguments of the model's forward that disable all experts of these types."""
    ids = torch.tensor([expert for kind in kinds for expert in layout.indices(kind)], dtype=torch.long, device=device)
    if way == "re-routed":
        bias = torch.zeros(layout.num_experts, device=device)
        return {"selection_bias": bias.index_fill(0, ids, -torch.inf)}

    def lose(routing: Routing) -> Routing:
        return apply_keep(routing, routing.kept & ~torch.isin(routing.expert, ids))

    return {"routing_edit": lose}


def result(lab: Lab) -> Result:
    """Both ways for all of the paper's rows."""
    seeds = list(lab.records(MOEPP))
    text = lab.blocks(lab.run(MOEPP, seeds[0]).recipe().data.sequence_length, MOEPP)
    blocks = {source: spread(all_, _BLOCKS) for source, all_ in text.items()}
    data: dict[str, Any] = {way: {name: {"loss": {}, "ffn_per_token": {}} for name in paper.TABLE_C} for way in WAYS}
    data["shares"] = {kind: [] for kind in KINDS}
    for seed in track(seeds, "disabling experts, a model at a time", console=lab.pool.console, transient=True):
        _one_model(lab.model(MOEPP, seed), seed, blocks, data)
    return Result(tables=_tables(data), claims=_claims(data), limits=_limits(lab), data=data)


def _one_model(model: MoEPPForCausalLM, seed: int, blocks: Mapping[str, Tensor], data: dict[str, Any]) -> None:
    """Measures one model's part of ``data``."""
    layout = model.config.moe.layout()
    measured: dict[tuple[str, ...], tuple[dict[str, float], list[RoutingStats]]] = {}
    for way in WAYS:
        for name, into in data[way].items():
            kinds = effective(way, disabled_types(name))
            key = (way, *kinds) if kinds else ()
            if key not in measured:
                how = intervention(way, kinds, layout, str(model.device)) if kinds else {}
                measured[key] = measure(model, blocks, **how)
            losses, stats = measured[key]
            into["loss"][seed] = losses | {"mean": statistics.fmean(losses.values())}
            into["ffn_per_token"][seed] = statistics.fmean(one.ffn_per_token(layout) for one in stats)
    _, stats = measured[()]
    for kind, found in data["shares"].items():
        found.append(statistics.fmean(one.shares(layout)[kind] for one in stats))


def effective(way: str, kinds: Sequence[ExpertType]) -> list[ExpertType]:
    """The types whose disabling changes what the model computes: a lost zero expert adds nothing, as before."""
    return [kind for kind in kinds if way != "lost" or kind != "zero"]


def change(data: Mapping[str, Any], way: str, name: str, *, base: str = ALL, source: str = "mean") -> Paired:
    """Of the loss, in nats per token, paired by seed."""
    ours, theirs = (data[way][row]["loss"] for row in (name, base))
    return paired(*({seed: one[source] for seed, one in row.items()} for row in (ours, theirs)))


def _tables(data: Mapping[str, Any]) -> list[Table]:
    every = [name for name in paper.TABLE_C if name != ALL]
    sources = [source for source in next(iter(data[WAYS[0]][ALL]["loss"].values())) if source != "mean"]

    def mean(way: str, name: str, source: str = "mean") -> float:
        return statistics.fmean(one[source] for one in data[way][name]["loss"].values())

    def ffn(way: str, name: str) -> float:
        return statistics.fmean(data[way][name]["ffn_per_token"].values())

    rows = [[ALL, f"{paper.TABLE_C[ALL]:.1f}", ""]]
    for way in WAYS:
        rows[0] += [f"{mean(way, ALL):.4f}", f"{ffn(way, ALL):.3f}"]
    for name in every:
        share = sum(statistics.fmean(data["shares"][kind]) for kind in disabled_types(name))
        row = [name, f"{paper.TABLE_C[name]:.1f}", f"{share:.1%}"]
        for way in WAYS:
            moved = change(data, way, name)
            row += [said(moved) if any(moved.values) else "0", f"{ffn(way, name):.3f}"]
        rows.append(row)
    head = ["", "the paper: WinoGrande", "choices disabled"]
    head += [text for way in WAYS for text in (f"{way}: loss − all's, 95 %", "FFN experts per token")]
    by_source = [[ALL, *(f"{mean(WAYS[0], ALL, source):.4f}" for _ in WAYS for source in sources)]]
    by_source += [
        [name, *(plus_minus(change(data, way, name, source=source)) for way in WAYS for source in sources)]
        for name in every
    ]
    return [
        Table("Measured, beside the paper's", head, rows, "Loss: nats per token of held-out text."),
        Table("By source", ["", *(f"{way}: {source}" for way in WAYS for source in sources)], by_source),
    ]


def _claims(data: Mapping[str, Any]) -> list[Claim]:
    claims = []
    for way in WAYS:
        # A zero expert that is lost leaves what it was: nothing.
        matter = [name for name in paper.TABLE_C if name != ALL and (way != "lost" or disabled_types(name) != ["zero"])]
        found = {name: change(data, way, name) for name in matter}
        worst = max(found, key=lambda name: found[name].mean)
        least = min(found, key=lambda name: found[name].mean)
        claims.append(
            Claim(
                f"Disabling any type of zero-computation expert costs quality, the slots being {way}.",
                all_of(map(above, found.values())),
                f"From {nats(found[least])} ({least}) to {nats(found[worst])} ({worst}).",
            )
        )
        single = [change(data, way, NONE_LEFT, base=name) for name in matter if len(disabled_types(name)) == 1]
        claims.append(
            Claim(
                f"Disabling all three costs more than any one of them, the slots being {way}.",
                all_of(map(above, single)),
                f"More by {min(one.mean for one in single):+.4f} to {max(one.mean for one in single):+.4f}.",
            )
        )
    return claims


def _limits(lab: Lab) -> list[str]:
    combine = lab.run(MOEPP, lab.scale.seeds[0]).recipe().model.get("combine")
    return [
        "The paper does not say what becomes of a disabled expert's slot; it scores WinoGrande, at which small models "
        "guess, so ours is the loss on held-out text.",
        f"Lost: the other slot keeps the weight that combine={combine} gave it among both, as when an expert is full; "
        "dividing again would make the one expert left count for two. A lost zero expert changes nothing by "
        "construction: that difference is 0, and rows that differ by zero alone are equal.",
        "Re-routed: a slot may fall to an FFN expert, so that the model computes more, not less; see FFN experts per "
        "token.",
        "The models were trained with all types; what a model trained without one loses is Table 5's question.",
    ]


def draw(found: Result, figure: "Figure") -> None:
    """What each disabling costs, both ways."""
    from .plots import COLOURS

    axes = figure.subplots()
    for way, colour, marker, shift in zip(WAYS, COLOURS, "os", (-0.15, 0.15), strict=False):
        loss = {
            name: {seed: sources["mean"] for seed, sources in row["loss"].items()}
            for name, row in found.data[way].items()
        }
        rows = {name: paired(values, loss[ALL]).values for name, values in loss.items() if name != ALL}
        draw_differences(axes, rows, colour=colour, marker=marker, shift=shift)
        axes.plot([], [], marker + "-", color=colour, label=f"slots {way}")
    axes.set_xlabel("validation loss − with all experts (nats per token)")
    axes.legend()


EXPERIMENT = Experiment(
    name="table_c",
    title="Table C: experts disabled at inference, their slots re-routed or lost",
    variants=[MOEPP],
    result=result,
    draw=draw,
)

if __name__ == "__main__":
    from .entry import main

    main(EXPERIMENT.name)
