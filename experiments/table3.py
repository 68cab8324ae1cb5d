"""Table 3: what tau buys. Expert throughput over vanilla's, the bound that Table 1 implies, and quality."""

import itertools
from typing import TYPE_CHECKING

from moepp.bench import Throughput

from . import paper
from .compare import compared, draw_differences, setup
from .curves import curve, losses_at_equal, step_times
from .experiment import Experiment
from .lab import Lab
from .outcomes import above, all_of, below
from .paired import Paired, paired
from .result import Claim, Result, Table
from .speed import TOKENS, throughput
from .text import gain, nats, said
from .variants import MOEPP, TAUS, VANILLA, with_tau

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BASE = VANILLA.name
ROWS = {BASE: VANILLA} | {f"τ = {tau:g}": with_tau(tau) for tau in TAUS}
OURS = dict(zip(TAUS, list(ROWS)[1:], strict=True))
"""The row of each tau."""


def result(lab: Lab) -> Result:
    """Ours beside the paper's; quality at equal tokens, at equal expert FLOPs and at equal wall-clock."""
    variants = [ROWS[name] for name in OURS.values()]
    speeds = throughput(lab, variants)
    tables, data = compared(lab, ROWS, [BASE])
    seconds = step_times(lab, variants)
    vanilla = curve(lab, [VANILLA.short(), VANILLA], seconds[BASE])
    rows = []
    for name in OURS.values():
        variant = ROWS[name]
        synthetic, learned = speeds[variant.name]["synthetic"], speeds[variant.name]["learned"]
        data[name] |= {
            "speedup": synthetic.speedup,
            "bound": synthetic.bound,
            "learned_speedup": learned.speedup,
            "learned_bound": learned.bound,
        }
        runs = {seed: points[-1] for seed, points in curve(lab, [variant], seconds[variant.name]).items()}
        losses = data[name]["loss"]
        equal = [paired(losses, losses_at_equal(vanilla, runs, what)) for what in ("tokens", "expert_flops", "seconds")]
        throughputs = [f"{_gain(one)} of {gain(one.bound)}" for one in (synthetic, learned)]
        rows.append([name, *throughputs, *map(said, equal)])
    ours = Table(
        "Expert throughput, and losses at equal cost",
        [
            "",
            "throughput of its bound, synthetic routing",
            "… learned routing",
            "loss − vanilla's at equal tokens",
            "… at equal expert FLOPs",
            "… at equal modelled wall-clock",
        ],
        rows,
        f"Throughput: {TOKENS:,} tokens, forward, experts of all layers, gain over vanilla at the same kind of "
        "routing ± its own spread between quartiles; the first seed's models. Loss: nats per token, 95 %. Equal FLOPs "
        "and wall-clock: vanilla's loss is taken between its runs of half and of all of the steps.",
    )
    best, trend = lab.difference(MOEPP, VANILLA), lab.difference(with_tau(1.0), with_tau(0.1))
    spent = {tau: data[name]["expert_flops"] for tau, name in OURS.items()}
    realised = [data[name]["speedup"] / data[name]["bound"] for name in OURS.values()]
    grows = [
        _more(speeds[ROWS[OURS[less]].name]["synthetic"], speeds[ROWS[OURS[more]].name]["synthetic"])
        for less, more in itertools.pairwise(TAUS)
    ]
    claims = [
        Claim("At equal tokens, MoE++ at τ = .75 is better than vanilla.", below(best), nats(best) + "."),
        Claim(
            "A larger τ generally scores better: at equal tokens, τ = 1 is better than τ = .1.",
            below(trend),
            f"{nats(trend)}, with {spent[1.0]:.2f} and {spent[0.1]:.2f} of vanilla's expert FLOPs.",
        ),
        Claim(
            "Expert throughput grows as τ falls, from each τ to the next.",
            all_of(map(above, grows)),
            f"Gains from +{100 * min(one.mean for one in grows):.1f} % to +{100 * max(one.mean for one in grows):.1f} "
            f"%; speed-up over bound {min(realised):.2f} to {max(realised):.2f}, the paper's .44 to .96.",
        ),
    ]
    recipe = lab.run(VANILLA, lab.scale.seeds[0]).recipe()
    limits = [
        "At equal tokens a smaller τ spends fewer expert FLOPs, so its loss alone says nothing against it.",
        f"Throughput is of experts of width {recipe.model['hidden_size']} (the paper's: 768 and more), and of one "
        "seed's models: its spread is that of rounds. Vanilla's loss is told down to "
        "half of its cost, so the smallest τ have none to compare with.",
        setup(lab),
    ]
    return Result(tables=[_published(), ours, *tables], claims=claims, limits=limits, data=data)


def _gain(one: Throughput) -> str:
    return f"{gain(one.speedup)} ± {100 * one.speedup * one.spread:.1f}"


def _more(fast: Throughput, slow: Throughput) -> Paired:
    """How much more one does than another, of the other's; half of both spreads to either side."""
    more = fast.tokens_per_second / slow.tokens_per_second - 1
    half = (1 + more) * (fast.spread + slow.spread) / 2
    return Paired(more, more - half, more + half, ())


def _published() -> Table:
    rows = []
    for tau in TAUS:
        row = [f"τ = {tau:g}"]
        for model, by_tau in paper.TABLE_3.items():
            ffn, others = paper.TABLE_3_EXPERTS[model]
            bound = (tau * ffn + others) / (tau * ffn)
            row.append(f"+{by_tau[tau][0]} % of {gain(bound)}; {by_tau[tau][1]}" if tau in by_tau else "")
        rows.append(row)
    vanilla = ["vanilla", *map(str, paper.TABLE_3_VANILLA.values())]
    return Table(
        "The paper: gain of expert throughput, its bound, average score", ["", *paper.TABLE_3], [vanilla, *rows]
    )


def draw(found: Result, figure: "Figure") -> None:
    """Speed-up and bound over tau, and the loss's difference from vanilla's."""
    from .plots import COLOURS

    left, right = figure.subplots(1, 2)
    rows = [found.data[name] for name in OURS.values()]
    left.plot(TAUS, [row["bound"] for row in rows], "--", color="#666666", label="bound (Table 1)")
    left.plot(TAUS, [row["speedup"] for row in rows], "o-", color=COLOURS[0], label="synthetic routing")
    left.plot(TAUS, [row["learned_speedup"] for row in rows], "s-", color=COLOURS[1], label="learned routing")
    left.set_xlabel("τ")
    left.set_ylabel("expert throughput over vanilla (×)")
    left.legend()
    vanilla = found.data[BASE]["loss"]
    differences = {name: paired(found.data[name]["loss"], vanilla).values for name in OURS.values()}
    draw_differences(right, differences, colour=COLOURS[0])
    right.set_xlabel("validation loss − vanilla's\n(nats per token)")


EXPERIMENT = Experiment(
    name="table3",
    title="Table 3: expert throughput and quality over τ",
    variants=[VANILLA, *map(with_tau, TAUS), VANILLA.short()],
    result=result,
    draw=draw,
)

if __name__ == "__main__":
    from .entry import main

    main(EXPERIMENT.name)
