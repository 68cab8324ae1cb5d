"""What MoE++ needs to reach its vanilla twin's final validation loss: tokens, expert FLOPs, wall-clock.

Every point is a whole run with its own schedule, since a loss in the middle of a schedule is not what training for so
long would have reached. Between them, the loss is taken as linear in the logarithm of the tokens.
"""

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from moepp.bench import Timing

from .experiment import Experiment
from .lab import Lab
from .paired import interval, paired
from .record import Record
from .result import Claim, Outcome, Result, Table
from .speed import step_seconds
from .text import agreement, nats
from .variants import MOEPP, SAME_EXPERT_FLOPS, VANILLA

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OURS = (MOEPP.short(), MOEPP, SAME_EXPERT_FLOPS)
THEIRS = (VANILLA.short(), VANILLA)
TARGET = 0.75


def result(lab: Lab) -> Result:
    """By seed: interpolated between whole runs."""
    ours, theirs = lab.records(MOEPP), lab.records(VANILLA)
    runs = {seed: [lab.records(variant)[seed] for variant in OURS if seed in lab.records(variant)] for seed in theirs}
    timings = step_seconds(lab, [MOEPP])
    pace = timings[MOEPP.name].median / timings[VANILLA.name].median
    tokens: dict[int, float | None] = {
        seed: tokens_to_reach(one.loss, runs[seed]) for seed, one in theirs.items() if seed in ours
    }
    reached = {seed: value / theirs[seed].tokens for seed, value in tokens.items() if value is not None}
    flops = {
        seed: share * _flops_per_token(ours[seed]) / _flops_per_token(theirs[seed]) for seed, share in reached.items()
    }
    clock = {seed: share * pace for seed, share in reached.items()}
    equal_tokens = lab.difference(MOEPP, VANILLA)
    equal_flops = lab.difference(SAME_EXPERT_FLOPS, VANILLA)
    spent = _mean(
        [one.expert_flops / theirs[seed].expert_flops for seed, one in lab.records(SAME_EXPERT_FLOPS).items()]
    )
    equal_clock = paired(
        {seed: loss_at(theirs[seed].tokens / pace, runs[seed]) for seed in tokens}, lab.losses(VANILLA)
    )
    rows = [
        ["to reach vanilla's final loss: tokens", *_needed(reached, len(tokens))],
        ["… expert FLOPs", *_needed(flops, len(tokens))],
        ["… wall-clock", *_needed(clock, len(tokens))],
        ["loss − vanilla's at equal tokens", nats(equal_tokens), "1.00 × tokens"],
        ["… at equal wall-clock", nats(equal_clock), f"{1 / pace:.2f} × tokens"],
        ["… at 5/3 of the tokens", nats(equal_flops), f"{spent:.2f} × expert FLOPs"],
    ]
    note = (
        f"A training step of MoE++ takes {pace:.3f} of vanilla's time, measured in turns on the trained models "
        f"({timings[MOEPP.name].rounds} rounds, quartiles {_spread(timings[MOEPP.name])} apart); expert FLOPs are "
        "those counted while training, forward and backward."
    )
    claims = [
        _target("expert FLOPs", flops, len(tokens)),
        _target("wall-clock", clock, len(tokens)),
        Claim("At equal tokens, MoE++ is better than vanilla.", agreement(equal_tokens, "lower"), nats(equal_tokens)),
        Claim("At equal wall-clock, MoE++ is better.", agreement(equal_clock, "lower"), nats(equal_clock)),
        Claim(
            "At 5/3 of the tokens, equal expert FLOPs if tau's share is reached, MoE++ is better.",
            agreement(equal_flops, "lower"),
            f"{nats(equal_flops)} with {spent:.2f} of vanilla's expert FLOPs.",
        ),
    ]
    data = {
        "pace": pace,
        "runs": {
            variant.name: {
                str(seed): [
                    {"tokens": one.tokens, "expert_flops": one.expert_flops, "loss": one.loss}
                    for one in (lab.records(length)[seed] for length in lengths if seed in lab.records(length))
                ]
                for seed in lab.scale.seeds
            }
            for variant, lengths in ((MOEPP, OURS), (VANILLA, THEIRS))
        },
        "reached": {"tokens": reached, "expert_flops": flops, "wall_clock": clock},
    }
    limits = [
        "The vocabulary's products and attention, which MoE++ does not change, take most of a step of a model this "
        "small: its wall-clock gains less than its experts do."
    ]
    return Result(
        tables=[Table("MoE++ at τ = .75 over its vanilla twin", ["", "mean [95 %]", "at"], rows, note)],
        claims=claims,
        limits=limits,
        data=data,
    )


def tokens_to_reach(loss: float, runs: Sequence[Record]) -> float | None:
    """Training tokens at which the runs' final losses cross ``loss``; None where the longest doesn't reach it."""
    points = sorted((one.tokens, one.loss) for one in runs)
    if points[-1][1] > loss:
        return None
    if points[0][1] <= loss:
        return float(points[0][0])
    for (fewer, before), (more, after) in itertools.pairwise(points):
        if after <= loss < before:
            part = (before - loss) / (before - after)
            return math.exp(math.log(fewer) + part * (math.log(more) - math.log(fewer)))
    return float(points[-1][0])


def loss_at(tokens: float, runs: Sequence[Record]) -> float:
    """The final loss of a run of so many tokens, between (or just outside of) runs that were made."""
    points = sorted((math.log(one.tokens), one.loss) for one in runs)
    x = math.log(tokens)
    above = next((index for index, (place, _) in enumerate(points) if place >= x), len(points) - 1)
    (fewer, before), (more, after) = points[max(above, 1) - 1], points[max(above, 1)]
    return before + (after - before) * (x - fewer) / (more - fewer)


def _flops_per_token(record: Record) -> float:
    return record.expert_flops / record.tokens


def _needed(shares: dict[int, float], seeds: int) -> tuple[str, str]:
    """The mean over seeds, if all of them got there."""
    if len(shares) < seeds:
        return f"not reached by {seeds - len(shares)} of {seeds} seeds", "5/3 of the tokens at most"
    found = interval(list(shares.values()))
    return f"{found.mean:.2f} × [{found.low:.2f}, {found.high:.2f}]", ", ".join(f"{v:.2f}" for v in found.values)


def _target(what: str, shares: dict[int, float], seeds: int) -> Claim:
    text = f"MoE++ needs at most {TARGET} × its vanilla twin's {what} for the twin's final loss."
    if len(shares) < seeds:
        outcome: Outcome = "disagrees"
    else:
        found = interval(list(shares.values()))
        outcome = "agrees" if found.high <= TARGET else "disagrees" if found.low > TARGET else "unresolved"
    return Claim(text, outcome, _needed(shares, seeds)[0] + ".")


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _spread(timing: Timing) -> str:
    return f"{timing.iqr / timing.median:.1%}"


def draw(found: Result, figure: "Figure") -> None:
    """Final losses over tokens and over expert FLOPs."""
    from .plots import COLOURS

    for axes, quantity, label in zip(
        figure.subplots(1, 2, sharey=True),
        ("tokens", "expert_flops"),
        ("training tokens", "expert FLOPs, forward and backward"),
        strict=True,
    ):
        for colour, marker, (name, seeds) in zip(COLOURS, "os", found.data["runs"].items(), strict=False):
            for index, points in enumerate(seeds.values()):
                x = [point[quantity] for point in points]
                y = [point["loss"] for point in points]
                axes.plot(x, y, f"{marker}-", color=colour, alpha=0.7, label=name if index == 0 else None)
        axes.set_xscale("log")
        axes.set_xlabel(label)
        axes.legend()
    figure.axes[0].set_ylabel("final validation loss (nats per token)")


EXPERIMENT = Experiment(
    name="headline",
    title="What MoE++ needs to reach its vanilla twin's loss",
    variants=[*OURS, *THEIRS],
    result=result,
    draw=draw,
)

if __name__ == "__main__":
    from .entry import main

    main(EXPERIMENT.name)
