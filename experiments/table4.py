"""Table 4: the paper's scores, and those of any checkpoint that is given."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from moepp.data import load_tokenizer
from moepp.evaluate import Evaluation, Score, evaluate_tasks
from moepp.model import load_config, load_model

from . import paper
from .experiment import Experiment
from .lab import Lab
from .result import Claim, Outcome, Result, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OURS = "The released checkpoint, loaded here, scores what the paper says."
GIVE = "Give --checkpoint FOLDER, as often as there are models to measure."


def result(lab: Lab) -> Result:
    """A table for each checkpoint.

    Raises:
        DataError, ConfigError: a folder is no model.
        BackendUnavailable: lm-evaluation-harness is not installed.
    """
    if not lab.checkpoints:
        return Result(tables=[_published()], claims=[Claim(OURS, "not measured", GIVE)], limits=_LIMITS)
    for folder in lab.checkpoints:  # all of them first: one takes hours
        load_config(folder)
    found = {str(folder): _evaluate(lab, folder) for folder in lab.checkpoints}
    return Result(
        tables=[_table(name, evaluation) for name, evaluation in found.items()],
        claims=[_claim(name, evaluation) for name, evaluation in found.items()],
        limits=_LIMITS,
        data={name: _scores(evaluation) for name, evaluation in found.items()},
    )


_LIMITS = [
    f"{' and '.join(paper.TABLE_4_NEAR_CHANCE)} are near chance for the paper's model too: its second average leaves "
    "them out, each checkpoint's the tasks that it is near chance on itself."
]


def _evaluate(lab: Lab, folder: Path) -> Evaluation:
    model = load_model(folder, device=lab.device)
    tokenizer = load_tokenizer(str(folder), vocab_size=model.config.vocab_size)

    def say(text: str) -> None:
        lab.pool.console.print(f"{folder}: {text}", style="dim", highlight=False)

    return evaluate_tasks(model, tokenizer, ["paper"], announce=say)


def _published() -> Table:
    above = [score for task, score in paper.TABLE_4.items() if task not in paper.TABLE_4_NEAR_CHANCE]
    rows = [[task, f"{score:.1f}", "not measured"] for task, score in paper.TABLE_4.items()]
    rows.append(["average", f"{statistics.fmean(paper.TABLE_4.values()):.1f}", ""])
    rows.append(["average without near-chance tasks", f"{statistics.fmean(above):.1f}", ""])
    return Table("The paper: MoE++ 7B after 1T tokens, %", ["", "the paper", "a checkpoint"], rows, GIVE)


def _table(name: str, evaluation: Evaluation) -> Table:
    """The paper's tasks in its order, what could not be had with its reason; averages over what was measured."""
    scores = {score.label: score for score in evaluation.scores}
    reasons = {skipped.label: skipped.reason for skipped in evaluation.skipped}
    rows = []
    for task, published in paper.TABLE_4.items():
        if task in scores:
            rows.append([task, f"{published:.1f}", *_cells(scores[task]), ""])
        else:
            rows.append([task, f"{published:.1f}", "not measured", "", "", "", reasons.get(task, "")])
    above = [score for score in evaluation.scores if not score.near_chance]
    average, error = evaluation.average(), evaluation.average_standard_error()
    if average is not None:
        mean = f"{100 * average:.1f}" + ("" if error is None else f" ± {100 * error:.1f}")
        rows.append([f"average of these {len(scores)}", _paper_average(evaluation.scores), mean, "", "", "", ""])
    if (without := evaluation.average_above_chance()) is not None:
        label = f"average of the {len(above)} above chance"
        rows.append([label, _paper_average(above), f"{100 * without:.1f}", "", "", "", ""])
    head = ["", "the paper's 7B", "score ± standard error", "chance", "shots", "FFN experts per token", "why not"]
    return Table(f"{name}, %", head, rows, "* no more than two standard errors above chance.")


def _cells(score: Score) -> list[str]:
    error = "" if score.standard_error is None else f" ± {100 * score.standard_error:.1f}"
    mark = "*" if score.near_chance else ""
    return [f"{100 * score.score:.1f}{mark}{error}", f"{100 * score.chance:.1f}", str(score.shots),
            f"{score.ffn_per_token:.3f}"]  # fmt: skip


def _paper_average(scores: Sequence[Score]) -> str:
    return f"{statistics.fmean(paper.TABLE_4[score.label] for score in scores):.1f}"


def _claim(name: str, evaluation: Evaluation) -> Claim:
    off = {score.label: 100 * score.score - paper.TABLE_4[score.label] for score in evaluation.scores}
    outcome: Outcome = "not measured"
    if off:
        within = all(
            abs(off[score.label]) <= 200 * (score.standard_error or 0.0) + paper.TABLE_4_ROUNDING
            for score in evaluation.scores
        )
        outcome = "agrees" if within else "disagrees"
    evidence = f"{len(off)} of {len(paper.TABLE_4)} tasks measured"
    if off:
        task = max(off, key=lambda label: abs(off[label]))
        evidence += f"; the furthest is {task}, {off[task]:+.1f}"
    return Claim(f"{name} scores what the paper says of its 7B, within two standard errors.", outcome, f"{evidence}.")


def _scores(evaluation: Evaluation) -> dict[str, object]:
    return {
        "tasks": {score.label: asdict(score) | {"near_chance": score.near_chance} for score in evaluation.scores},
        "skipped": {skipped.label: skipped.reason for skipped in evaluation.skipped},
        "average": evaluation.average(),
        "average_above_chance": evaluation.average_above_chance(),
    }


def draw(found: Result, figure: "Figure") -> None:
    """The paper's scores as bars, the checkpoints' as points with standard errors, chance as a tick."""
    from .plots import COLOURS

    axes = figure.subplots()
    tasks = list(paper.TABLE_4)
    axes.bar(tasks, list(paper.TABLE_4.values()), color="#BBBBBB", label="the paper's MoE++ 7B")
    for (name, one), colour, mark in zip(found.data.items(), COLOURS, "osD^vP", strict=False):
        scores = one["tasks"]
        places = [task for task in tasks if task in scores]
        values = [100 * scores[task]["score"] for task in places]
        errors = [100 * (scores[task]["standard_error"] or 0.0) for task in places]
        axes.errorbar(places, values, errors, fmt=mark, color=colour, label=name)
        axes.plot(places, [100 * scores[task]["chance"] for task in places], "_", color="black", markersize=14)
    axes.set_ylabel("score (%)")
    axes.tick_params(axis="x", rotation=30)
    axes.legend()


EXPERIMENT = Experiment(
    name="table4",
    title="Table 4: scores on the paper's eleven tasks",
    variants=[],
    result=result,
    draw=draw,
)

if __name__ == "__main__":
    from .entry import main

    main(EXPERIMENT.name)
