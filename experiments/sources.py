"""Load balance over very different texts, some of which the models never saw anything like.

Held-out text of the sources that were trained on, and texts made here: held-out prose with its letters moved by 13
places, which keeps a language's structure and no word; random bytes in base 64; columns of random numbers; and random
words of nine other scripts, which reach the model byte by byte. A source's two halves, mostly of different documents,
are the control of every distance between sources: all distances are between halves.
"""

import base64
import codecs
import random
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from rich.progress import track
from torch import Tensor

from .experiment import Experiment
from .held_out import measure, spread
from .lab import Lab, cut
from .loads import apart, distances
from .outcomes import above, below
from .paired import Paired, interval, paired
from .result import Claim, Result, Table
from .text import said
from .variants import MOEPP, VANILLA, Variant

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BLOCKS = 32
"""Of each half of each source."""
_CHARACTERS = 8
"""Made for each token that is needed; a token of such text is shorter."""
_SCRIPTS = "αω ая אי ءي अह กฮ ぁん 一鿿 가힣"
"""The first and the last letter of each."""


def unseen(documents: Sequence[str], tokens: int) -> dict[str, list[str]]:
    """Texts unlike Python's library, each enough for so many tokens; the first is made of documents."""
    draw, size = random.Random(0), tokens * _CHARACTERS

    def until(make: Any) -> list[str]:
        return [make() for _ in range(size // 2000 + 1)]  # documents of 2000 characters or more

    def word() -> str:
        first, last = draw.choice(_SCRIPTS.split())
        return "".join(chr(draw.randint(ord(first), ord(last))) for _ in range(draw.randint(2, 9)))

    return {
        "letters moved": [codecs.encode(text, "rot13") for text in documents],
        "base 64": until(lambda: base64.encodebytes(draw.randbytes(1500)).decode()),
        "numbers": until(lambda: "\n".join(f"{draw.gauss(0, 100):.3f}, {draw.randrange(10**6)}" for _ in range(150))),
        "other scripts": until(lambda: " ".join(word() for _ in range(400))),
    }


def result(lab: Lab) -> Result:
    """MoE++ beside vanilla, on every source."""
    halves = _halves(lab)
    data: dict[str, Any] = {"seen": list(lab.text), "models": {}}
    runs = [(variant, seed) for variant in (MOEPP, VANILLA) for seed in lab.records(variant)]
    for variant, seed in track(runs, "reading all sources", console=lab.pool.console, transient=True):
        data["models"].setdefault(variant.name, {})[seed] = _study(lab, variant, seed, halves)
    tokens = next(iter(halves.values()))[0].numel()
    return Result(
        tables=[_sources_table(data), _entropy_table(data), _distance_table(data)],
        claims=_claims(data),
        limits=[
            f"Up to {tokens:,} tokens of each half of a source. Load: of the choices in evaluation, before any "
            "capacity.",
            "What the models never saw is made by a generator: Python's library has no running text in another "
            "language. Letters moved by 13 places are tokens that the models know, in orders that they don't.",
            "A vanilla token has two FFN experts, so none can have more than half of the choices: of 8 experts, "
            "max/mean is at most 4. A MoE++ token may have one FFN expert beside a zero-computation expert, so one can "
            "have all (8). Part of what separates the models is this.",
            "Balanced over the mixture in training does not mean balanced on each source: a specialised expert looks "
            "unbalanced here.",
        ],
        data=data,
    )


def _halves(lab: Lab) -> dict[str, tuple[Tensor, Tensor]]:
    seed = lab.scale.seeds[0]
    length = lab.run(VANILLA, seed).recipe().data.sequence_length
    made = unseen(next(iter(lab.text.values())), 2 * _BLOCKS * length)
    blocks = lab.blocks(length)
    blocks |= {name: cut(documents, lab.tokenizer(VANILLA, seed), length) for name, documents in made.items()}
    half = {name: len(all_) // 2 for name, all_ in blocks.items()}
    return {
        name: (spread(all_[: half[name]], _BLOCKS), spread(all_[half[name] :], _BLOCKS))
        for name, all_ in blocks.items()
    }


def _study(lab: Lab, variant: Variant, seed: int, halves: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """One model: what each source does to it, and the distances between sources."""
    model = lab.model(variant, seed)
    layout = model.config.moe.layout()
    loads: dict[str, list[Tensor]] = {}
    sources: dict[str, Any] = {}
    for source, both in halves.items():
        found = [measure(model, {source: blocks}) for blocks in both]
        stats = [a + b for a, b in zip(*(layers for _, layers in found), strict=True)]
        loads[source] = [load([one.assigned[: layout.ffn] for one in layers]) for _, layers in found]
        of_all = load([one.assigned[: layout.ffn] for one in stats])
        sources[source] = {
            "loss": statistics.fmean(losses[source] for losses, _ in found),
            "ffn_per_token": statistics.fmean(one.ffn_per_token(layout) for one in stats),
            "max_over_mean": (of_all.max(-1).values * layout.ffn).tolist(),
            "cv": (of_all.std(-1, correction=0) * layout.ffn).tolist(),
            "entropy": torch.special.entr(of_all).sum(-1).tolist(),
        }
    return {"sources": sources, "distance": distances(loads)}


def load(assigned: Sequence[Tensor]) -> Tensor:
    """(layers, FFN experts) each expert's share of the choices of FFN experts."""
    counts = torch.stack(list(assigned)).double().cpu()
    return counts / counts.sum(-1, keepdim=True).clamp_min(1)


def _values(data: Mapping[str, Any], variant: Variant, source: str, field: str) -> dict[Any, float]:
    """By seed, the mean over layers."""
    found = {seed: one["sources"][source][field] for seed, one in data["models"][variant.name].items()}
    return {seed: statistics.fmean(v) if isinstance(v, list) else v for seed, v in found.items()}


def _mean(data: Mapping[str, Any], variant: Variant, source: str, field: str) -> float:
    return statistics.fmean(_values(data, variant, source, field).values())


def _names(data: Mapping[str, Any]) -> list[str]:
    return list(next(iter(data["models"][MOEPP.name].values()))["sources"])


def _sources_table(data: Mapping[str, Any]) -> Table:
    rows = []
    for source in _names(data):
        row = [source if source in data["seen"] else f"{source} (never seen)"]
        row.append(f"{_mean(data, MOEPP, source, 'ffn_per_token'):.3f}")
        for field in ("max_over_mean", "cv", "loss"):
            row += [f"{_mean(data, variant, source, field):.3f}" for variant in (MOEPP, VANILLA)]
        ours, theirs = (_values(data, variant, source, "max_over_mean") for variant in (MOEPP, VANILLA))
        rows.append([*row, said(paired(ours, theirs))])
    head = ["", "MoE++: FFN experts per token"]
    head += [f"{variant.name}: {text}" for text in ("max/mean", "CV", "loss") for variant in (MOEPP, VANILLA)]
    return Table(
        "Load of the FFN experts by source",
        [*head, "max/mean, MoE++ − vanilla, 95 %"],
        rows,
        "Shares of the choices that fell on FFN experts; mean over layers and seeds. Max/mean: 1 is even. CV: standard "
        "deviation over the mean. Loss: nats per token.",
    )


def _entropy_table(data: Mapping[str, Any]) -> Table:
    rows = []
    for source in _names(data):
        row = [source]
        for variant in (MOEPP, VANILLA):
            by_seed = [one["sources"][source]["entropy"] for one in data["models"][variant.name].values()]
            row += [f"{statistics.fmean(layer):.3f}" for layer in zip(*by_seed, strict=True)]
        rows.append(row)
    layers = (len(rows[0]) - 1) // 2
    head = [f"{variant.name}, layer {layer}" for variant in (MOEPP, VANILLA) for layer in range(layers)]
    return Table(
        "Entropy of the FFN experts' load, nats",
        ["", *head],
        rows,
        "Mean over seeds; ln 8 = 2.079 is even for 8 experts.",
    )


def _distances(data: Mapping[str, Any], variant: Variant, one: str, other: str) -> list[float]:
    return [study["distance"][one][other] for study in data["models"][variant.name].values()]


def _distance_table(data: Mapping[str, Any]) -> Table:
    names = _names(data)
    rows = [
        [
            one,
            *(
                " · ".join(f"{statistics.fmean(_distances(data, v, one, b)):.3f}" for v in (MOEPP, VANILLA))
                for b in names
            ),
        ]
        for one in names
    ]
    return Table(
        "Total variation between sources' loads, MoE++ · vanilla",
        ["", *names],
        rows,
        "On the diagonal: the halves of a source. 0 is equal, 1 is no expert in common. Mean over layers and seeds.",
    )


def _over(data: Mapping[str, Any], sources: Sequence[str], field: str, ours: Variant, theirs: Variant) -> Paired:
    """Of two models' means over sources, by seed."""
    one, other = (
        {
            seed: statistics.fmean(_values(data, variant, source, field)[seed] for source in sources)
            for seed in data["models"][variant.name]
        }
        for variant in (ours, theirs)
    )
    return paired(one, other)


def _claims(data: Mapping[str, Any]) -> list[Claim]:
    seen, names = data["seen"], _names(data)
    new = [source for source in names if source not in seen]
    on_seen, on_new = (_over(data, sources, "max_over_mean", MOEPP, VANILLA) for sources in (seen, new))
    by_seed = list(data["models"][MOEPP.name].values())
    between = interval([apart(one["distance"], seen) for one in by_seed])
    spent = interval(
        [
            statistics.fmean(one["sources"][source]["ffn_per_token"] for source in new)
            - statistics.fmean(one["sources"][source]["ffn_per_token"] for source in seen)
            for one in by_seed
        ]
    )
    return [
        Claim(
            "On the sources trained on, MoE++'s FFN experts are loaded more evenly than vanilla's (max/mean).",
            below(on_seen),
            said(on_seen),
        ),
        Claim(
            "On text unlike anything seen, MoE++'s FFN experts are loaded more evenly than vanilla's (max/mean).",
            below(on_new),
            said(on_new),
        ),
        Claim(
            "MoE++'s load differs more between the sources trained on than between halves of one (total variation).",
            above(between),
            said(between),
        ),
        Claim(
            "MoE++ spends more FFN experts a token on text unlike anything seen than on the sources trained on.",
            above(spent),
            said(spent, "FFN experts per token"),
        ),
    ]


def draw(found: Result, figure: "Figure") -> None:
    """The busiest FFN expert by source and model, and MoE++'s distances between sources."""
    from .plots import COLOURS

    left, right = figure.subplots(1, 2, width_ratios=[1, 1.15])
    names = _names(found.data)
    for variant, colour, marker, shift in ((MOEPP, COLOURS[0], "o", -0.15), (VANILLA, COLOURS[1], "s", 0.15)):
        for place, source in enumerate(names):
            values = list(_values(found.data, variant, source, "max_over_mean").values())
            label = variant.name if place == 0 else None
            left.plot(values, [place + shift] * len(values), marker, color=colour, alpha=0.5, markersize=4)
            left.plot(statistics.fmean(values), place + shift, "|", color=colour, ms=12, mew=2, label=label)
    left.axvline(1, color="#666666", linewidth=1)
    left.set_yticks(range(len(names)), names)
    left.invert_yaxis()
    left.set_xlabel("busiest FFN expert's load over the mean\n(mean over layers; points: seeds)")
    left.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    rows = [[statistics.fmean(_distances(found.data, MOEPP, one, other)) for other in names] for one in names]
    image = right.imshow(rows, cmap="cividis", vmin=0)
    for y, row in enumerate(rows):
        for x, value in enumerate(row):
            light = value > max(map(max, rows)) / 2
            right.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=7, color="black" if light else "white")
    right.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=8)
    right.set_yticks(range(len(names)), names, fontsize=8)
    figure.colorbar(image, ax=right, label="total variation of MoE++'s load\n(diagonal: halves of a source)")


EXPERIMENT = Experiment(
    name="sources",
    title="Check 5: load balance over very different texts",
    variants=[MOEPP, VANILLA],
    result=result,
    draw=draw,
)

if __name__ == "__main__":
    from .entry import main

    main(EXPERIMENT.name)
