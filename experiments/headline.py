"""What MoE++ needs to reach its vanilla twin's final validation loss: tokens, expert FLOPs, wall-clock.

Any model whose tokens are cheaper can be trained on more of them, so a vanilla MoE of thinner experts, as cheap a token
as MoE++, is asked the same.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, get_args

from .compare import compared, setup
from .curves import Point, Quantity, curve, losses_at_equal, needed, step_times
from .experiment import Experiment
from .lab import Lab
from .outcomes import below
from .paired import interval, paired
from .result import Claim, Outcome, Result, Table
from .text import level, nats, said
from .variants import MOEPP, SAME_EXPERT_FLOPS, THIN, THIN_FULL, THIN_SAME_FLOPS, VANILLA

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LENGTHS = {
    MOEPP: (MOEPP.short(), MOEPP, SAME_EXPERT_FLOPS),
    THIN_FULL: (THIN, THIN_FULL, THIN_SAME_FLOPS),
    VANILLA: (VANILLA.short(), VANILLA),
}
"""A model's runs, from the shortest to the longest."""
OTHERS = (MOEPP, THIN_FULL)
TARGET = 0.75
NAMES: dict[Quantity, str] = {"tokens": "tokens", "expert_flops": "expert FLOPs", "seconds": "modelled wall-clock"}

Shares = Mapping[int, tuple[float, float]]
"""By seed, between which shares of vanilla's quantity."""


def result(lab: Lab) -> Result:
    """By seed: interpolated between whole runs."""
    seconds = step_times(lab, OTHERS)
    curves = {model.name: curve(lab, lengths, seconds[model.name]) for model, lengths in LENGTHS.items()}
    vanilla = {seed: points[-1] for seed, points in curves[VANILLA.name].items()}
    goal = {seed: point.loss for seed, point in vanilla.items()}
    shares = {
        (model.name, quantity): _shares(curves[model.name], vanilla, quantity)
        for model in OTHERS
        for quantity in get_args(Quantity)
    }
    losses = {
        (model.name, quantity): losses_at_equal(curves[model.name], vanilla, quantity)
        for model in OTHERS
        for quantity in get_args(Quantity)
    }
    rows = [
        [f"{name}, of vanilla's, to reach its final loss", *(_cell(shares[model.name, quantity]) for model in OTHERS)]
        for quantity, name in NAMES.items()
    ]
    rows += [
        [
            f"loss − vanilla's at equal {name}, nats per token",
            *(said(paired(losses[model.name, quantity], goal)) for model in OTHERS),
        ]
        for quantity, name in NAMES.items()
    ]
    paces = {
        model.name: interval([seconds[model.name][seed] / seconds[VANILLA.name][seed] for seed in vanilla])
        for model in OTHERS
    }
    note = (
        "Mean [95 % over seeds]. Expert FLOPs: those counted while training, forward and backward. Wall-clock is "
        "modelled: a run's steps times the time of one, measured in turns on each seed's trained models; a step takes "
        + " and ".join(f"{level(pace, digits=3)} of vanilla's ({name})" for name, pace in paces.items())
        + "."
    )
    ours, thin = (paired(losses[model.name, "expert_flops"], goal) for model in OTHERS)
    control = paired(losses[MOEPP.name, "expert_flops"], losses[THIN_FULL.name, "expert_flops"])
    claims = [
        *(
            Claim(
                f"MoE++ needs at most {TARGET} × its vanilla twin's {NAMES[quantity]} for the twin's final loss.",
                at_most(shares[MOEPP.name, quantity], TARGET),
                _cell(shares[MOEPP.name, quantity]) + ".",
            )
            for quantity in ("expert_flops", "seconds")
        ),
        *(
            Claim(
                f"At equal {name}, MoE++ at τ = .75 is better than vanilla.",
                below(paired(losses[MOEPP.name, quantity], goal)),
                nats(paired(losses[MOEPP.name, quantity], goal)) + ".",
            )
            for quantity, name in NAMES.items()
        ),
        Claim(
            "At equal expert FLOPs, MoE++ at τ = .75 is better than vanilla with experts of .6 the width.",
            below(control),
            f"{nats(control)}; less vanilla: MoE++ {nats(ours)}, thinner experts {nats(thin)}.",
            origin="control",
        ),
    ]
    tables, models = compared(
        lab, {MOEPP.name: MOEPP, THIN_FULL.name: THIN_FULL, VANILLA.name: VANILLA}, [VANILLA.name]
    )
    limits = [
        "While the loss still falls steeply with the tokens, any model whose tokens cost less needs fewer expert FLOPs "
        "to reach a given loss, by being shown more text. What is MoE++'s own is the difference from thinner experts.",
        "The loss is taken as linear in the logarithm of a quantity between whole runs of half, all and 5/3 of the "
        "steps, and along the last line up to 15 % outside of them.",
        "The vocabulary's products and attention, which MoE++ does not change, take most of a step of a model this "
        "small: its wall-clock gains less than its experts do.",
        setup(lab),
    ]
    data = {
        "step_seconds": seconds,
        "runs": {
            name: {seed: [p._asdict() for p in points] for seed, points in c.items()} for name, c in curves.items()
        },
        "needed": {
            f"{name}: {quantity}": {seed: [low, None if math.isinf(high) else high] for seed, (low, high) in of.items()}
            for (name, quantity), of in shares.items()
        },
        "models": models,
    }
    first = Table("To reach vanilla's final loss, and at equal cost", ["", *(one.name for one in OTHERS)], rows, note)
    return Result(tables=[first, *tables], claims=claims, limits=limits, data=data)


def _shares(ours: Mapping[int, Sequence[Point]], vanilla: Mapping[int, Point], quantity: Quantity) -> Shares:
    found = {seed: needed(vanilla[seed].loss, points, quantity) for seed, points in ours.items() if seed in vanilla}
    return {
        seed: (low / getattr(vanilla[seed], quantity), high / getattr(vanilla[seed], quantity))
        for seed, (low, high) in found.items()
    }


def _known(shares: Shares) -> list[float] | None:
    """By seed, where all of them lie between runs."""
    return [low for low, _ in shares.values()] if all(low == high for low, high in shares.values()) else None


def at_most(shares: Shares, bound: float) -> Outcome:
    """Of a claim that a share is at most the bound; of seeds outside of the runs only their side can be told."""
    if (values := _known(shares)) is not None:
        return below(interval(values), bound)
    if all(high <= bound for _, high in shares.values()):
        return "agrees"
    return "disagrees" if all(low > bound for low, _ in shares.values()) else "unresolved"


def _cell(shares: Shares) -> str:
    """The mean over seeds where all are known, and each seed's."""
    by_seed = ", ".join(
        f"{low:.2f}" if low == high else f"over {low:.2f}" if math.isinf(high) else f"under {high:.2f}"
        for low, high in shares.values()
    )
    values = _known(shares)
    return f"by seed {by_seed}" if values is None else f"{level(interval(values), digits=2)} × (by seed {by_seed})"


def draw(found: Result, figure: "Figure") -> None:
    """Final losses over tokens and over expert FLOPs."""
    from .plots import COLOURS

    for axes, quantity, label in zip(
        figure.subplots(1, 2, sharey=True),
        ("tokens", "expert_flops"),
        ("training tokens", "expert FLOPs, forward and backward"),
        strict=True,
    ):
        for colour, marker, (name, seeds) in zip(COLOURS, "o^s", found.data["runs"].items(), strict=False):
            for index, points in enumerate(seeds.values()):
                x = [point[quantity] for point in points]
                y = [point["loss"] for point in points]
                axes.plot(x, y, f"{marker}-", color=colour, alpha=0.7, label=name if index == 0 else None)
        axes.set_xscale("log")
        axes.set_xlabel(label)
    figure.axes[0].legend(fontsize=8)
    figure.axes[0].set_ylabel("final validation loss (nats per token)")


EXPERIMENT = Experiment(
    name="headline",
    title="What MoE++ needs to reach its vanilla twin's loss",
    variants=[variant for lengths in LENGTHS.values() for variant in lengths],
    result=result,
    draw=draw,
    more_seeds=True,
)

if __name__ == "__main__":
    from .entry import main

    main(EXPERIMENT.name)
