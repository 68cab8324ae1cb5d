"""The ``stdlib`` evaluation of trained models: questions about modules of Python's library that none of them saw."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.progress import track

from . import paper
from .evaluated import evaluated
from .experiment import Experiment
from .lab import Lab
from .outcomes import above
from .paired import Paired, paired
from .result import Claim, Result, Table
from .text import said
from .variants import MOEPP, NO_RESIDUAL, VANILLA, Variant, with_tau

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VARIANTS = (VANILLA, with_tau(0.25), MOEPP, with_tau(1.0), NO_RESIDUAL)
EVERY, ABOVE = "average", "average without near-chance tasks"
_PUBLISHED = "0.6B/(8+4)E"


def result(lab: Lab) -> Result:
    """Accuracies, their differences from vanilla's, and FFN experts per token by task."""
    runs = [(variant, seed) for variant in VARIANTS for seed in lab.records(variant)]
    data: dict[str, Any] = {"tasks": {}, "models": {variant.name: {} for variant in VARIANTS}}
    for variant, seed in track(runs, "scoring", console=lab.pool.console, transient=True):
        found = {score.label: score for score in evaluated(lab, variant, seed).scores}
        for label, score in found.items():
            data["tasks"].setdefault(
                label, {"items": score.items, "chance": score.chance, "baselines": score.baselines}
            )
        data["models"][variant.name][seed] = {
            label: {
                "score": score.score,
                "standard_error": score.standard_error or 0.0,
                "ffn_per_token": score.ffn_per_token,
            }
            for label, score in found.items()
        }
    items = ", ".join(f"{label} {task['items']}" for label, task in data["tasks"].items())
    return Result(
        tables=[_score_table(data), _difference_table(data), _ffn_table(data), _published()],
        claims=_claims(data),
        limits=[
            f"Items: {items}. With so few, a task's standard error is about two points, the same items for every "
            "model; differences are between models of one seed.",
            "A task is near chance here where vanilla is, in most seeds: at most two standard errors above guessing "
            "or, if that is more, above what understands nothing scores. It is then left out for every model.",
            "The paper scores eleven public tasks after 100B tokens; these models read a millionth of that, and the "
            "questions are about Python's library.",
        ],
        data=data,
    )


def tasks_above_chance(data: Mapping[str, Any]) -> list[str]:
    """Those that vanilla does better on than guessing and than what understands nothing, in most seeds."""
    vanilla = data["models"][VANILLA.name].values()

    def better(task: str) -> float:
        floor = max([data["tasks"][task]["chance"], *data["tasks"][task]["baselines"].values()])
        return statistics.fmean(one[task]["score"] - 2 * one[task]["standard_error"] > floor for one in vanilla)

    return [task for task in data["tasks"] if better(task) > 0.5]


def _accuracies(data: Mapping[str, Any], variant: Variant, tasks: Sequence[str]) -> dict[Any, float]:
    """By seed, averaged over tasks."""
    models = data["models"][variant.name]
    return {seed: statistics.fmean(one[task]["score"] for task in tasks) for seed, one in models.items()}


def _difference(data: Mapping[str, Any], ours: Variant, theirs: Variant, tasks: Sequence[str]) -> Paired:
    return paired(_accuracies(data, ours, tasks), _accuracies(data, theirs, tasks))


def _groups(data: Mapping[str, Any]) -> dict[str, list[str]]:
    """The rows: each task, and both averages."""
    rows = {task: [task] for task in data["tasks"]} | {EVERY: list(data["tasks"])}
    above = tasks_above_chance(data)
    return rows | ({ABOVE: above} if above else {})


def _table(
    data: Mapping[str, Any], title: str, cell: Callable[[Variant, list[str]], str], variants: Any, note: str
) -> Table:
    rows = [[name, *(cell(variant, tasks) for variant in variants)] for name, tasks in _groups(data).items()]
    return Table(title, ["", *(variant.name for variant in variants)], rows, note)


def _score_table(data: Mapping[str, Any]) -> Table:
    def cell(variant: Variant, tasks: list[str]) -> str:
        accuracy = f"{100 * statistics.fmean(_accuracies(data, variant, tasks).values()):.1f}"
        if len(tasks) > 1:
            return accuracy
        errors = [one[tasks[0]]["standard_error"] for one in data["models"][variant.name].values()]
        return f"{accuracy} ± {100 * statistics.fmean(errors):.1f}"

    table = _table(data, "Accuracy (%)", cell, VARIANTS, "")
    kinds = list(dict.fromkeys(kind for task in data["tasks"].values() for kind in task["baselines"]))
    rows = []
    for row in table.rows:
        task = data["tasks"].get(row[0])
        known = [] if task is None else [task["chance"], *(task["baselines"].get(kind) for kind in kinds)]
        known = known or [None] * (1 + len(kinds))
        rows.append([row[0], *("" if value is None else f"{100 * value:.1f}" for value in known), *row[1:]])
    head = ["", "guessing", *kinds, *table.head[1:]]
    note = (
        "Mean over seeds ± a task's standard error over its items. Between them what understands nothing scores: the "
        "more frequent tokens, or the first seed's vanilla model reading other questions' contexts."
    )
    return Table(table.title, head, rows, note)


def _difference_table(data: Mapping[str, Any]) -> Table:
    return _table(
        data,
        "Accuracy − vanilla's (points, 95 %)",
        lambda variant, tasks: said(_difference(data, variant, VANILLA, tasks), times=100, digits=2),
        VARIANTS[1:],
        "Paired by seed.",
    )


def _ffn_table(data: Mapping[str, Any]) -> Table:
    def cell(variant: Variant, tasks: list[str]) -> str:
        models = data["models"][variant.name].values()
        return f"{statistics.fmean(one[task]['ffn_per_token'] for one in models for task in tasks):.3f}"

    return _table(
        data, "FFN experts per token", cell, VARIANTS, "Over the tokens read for a task; mean over layers, seeds."
    )


def _published() -> Table:
    taus = {tau: f"{average:g}" for tau, (_, average) in paper.TABLE_3[_PUBLISHED].items()}
    row = [_PUBLISHED, f"{paper.TABLE_3_VANILLA[_PUBLISHED]:g}", taus[0.25], taus[0.75], taus[1.0], ""]
    return Table("The paper: average of other tasks, Table 3", ["", *(variant.name for variant in VARIANTS)], [row])


def _claims(data: Mapping[str, Any]) -> list[Claim]:
    every, able = list(data["tasks"]), tasks_above_chance(data)
    asked = [
        ("MoE++ scores better than vanilla, on the average of all tasks.", MOEPP, VANILLA, every),
        ("MoE++ scores better than vanilla, on the average without near-chance tasks.", MOEPP, VANILLA, able),
        (
            "A larger τ generally scores better: τ = 1 is better than τ = .25, on the average of all tasks.",
            with_tau(1.0),
            with_tau(0.25),
            every,
        ),
        ("Gating residuals improve MoE++, on the average of all tasks.", MOEPP, NO_RESIDUAL, every),
    ]
    claims = []
    for text, ours, theirs, tasks in asked:
        if tasks:
            found = _difference(data, ours, theirs, tasks)
            claims.append(Claim(text, above(found), said(found, "points", times=100, digits=2) + "."))
        else:
            claims.append(Claim(text, "not measured", "Every task is near chance."))
    return claims


def draw(found: Result, figure: "Figure") -> None:
    """Each model's difference from vanilla by task, with its seeds."""
    from .plots import COLOURS

    axes = figure.subplots()
    groups = _groups(found.data)
    for index, (variant, marker) in enumerate(zip(VARIANTS[1:], "os^D", strict=True)):
        for place, tasks in enumerate(groups.values()):
            one, y = _difference(found.data, variant, VANILLA, tasks), place + 0.18 * (index - 1.5)
            if len(one.values) > 1:
                axes.plot([100 * one.low, 100 * one.high], [y, y], color=COLOURS[index], linewidth=1.5, alpha=0.5)
            label = variant.name if place == 0 else None
            points = [100 * value for value in one.values]
            axes.plot(points, [y] * len(points), marker, color=COLOURS[index], markersize=4, label=label)
    axes.axvline(0, color="#666666", linewidth=1)
    axes.set_yticks(range(len(groups)), list(groups))
    axes.invert_yaxis()
    axes.set_xlabel("accuracy − vanilla's (points)\neach seed, and 95 % interval of the mean")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)


EXPERIMENT = Experiment(
    name="scores",
    title="Scores on questions about Python's library",
    variants=VARIANTS,
    result=result,
    draw=draw,
)

if __name__ == "__main__":
    from .entry import main

    main(EXPERIMENT.name)
