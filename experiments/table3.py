"""Table 3: what tau buys. Expert throughput over vanilla's, the bound that Table 1 implies, and quality."""

from typing import TYPE_CHECKING

from . import paper
from .experiment import Experiment
from .lab import Lab
from .result import Claim, Result, Table
from .speed import throughput
from .text import agreement, gain, nats
from .variants import MOEPP, TAUS, VANILLA, with_tau

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def result(lab: Lab) -> Result:
    """Ours beside the paper's."""
    variants = {tau: with_tau(tau) for tau in TAUS}
    speeds = throughput(lab, list(variants.values()))
    vanilla = lab.records(VANILLA)
    flops = sum(one.expert_flops for one in vanilla.values()) / len(vanilla)
    rows = [["vanilla", "", "100.0 %", "", "", "", f"{lab.mean_loss(VANILLA):.4f}", "", "1.00"]]
    data = {}
    for tau, variant in variants.items():
        records = lab.records(variant)
        synthetic, learned = speeds[variant.name]["synthetic"], speeds[variant.name]["learned"]
        difference = lab.difference(variant, VANILLA)
        spent = sum(one.expert_flops for one in records.values()) / len(records) / flops
        reached = sum(sum(one.ffn_share) / len(one.ffn_share) for one in records.values()) / len(records)
        target = next(iter(records.values())).ffn_share_target
        rows.append(
            [
                f"τ = {tau:g}",
                f"{target:.1%}",
                f"{reached:.1%}",
                gain(synthetic.speedup),
                gain(synthetic.bound),
                f"{gain(learned.speedup)} of {gain(learned.bound)}",
                f"{lab.mean_loss(variant):.4f}",
                nats(difference),
                f"{spent:.2f}",
            ]
        )
        data[str(tau)] = {
            "loss": lab.losses(variant),
            "difference": difference.values,
            "speedup": synthetic.speedup,
            "bound": synthetic.bound,
            "learned_speedup": learned.speedup,
            "learned_bound": learned.bound,
            "expert_flops": spent,
        }
    ours = Table(
        "Measured",
        [
            "",
            "FFN share aimed at",
            "reached",
            "expert throughput, synthetic",
            "bound",
            "… at learned routing",
            "validation loss",
            "− vanilla, 95 %",
            "expert FLOPs",
        ],
        rows,
        "Throughput: forward, experts of all layers, gain over vanilla at the same kind of routing; first seed. Loss: "
        "nats per token. Expert FLOPs: of training, over vanilla's.",
    )
    best = lab.difference(MOEPP, VANILLA)
    trend = lab.difference(with_tau(1.0), with_tau(0.1))
    realised = [data[str(tau)]["speedup"] / data[str(tau)]["bound"] for tau in TAUS]
    claims = [
        Claim("At equal tokens, MoE++ at τ = .75 is better than vanilla.", agreement(best, "lower"), nats(best)),
        Claim(
            "A larger τ generally scores better: τ = 1 is better than τ = .1.", agreement(trend, "lower"), nats(trend)
        ),
        Claim(
            "Expert throughput grows as τ falls.",
            "agrees" if sorted(TAUS, key=lambda tau: -data[str(tau)]["speedup"]) == sorted(TAUS) else "disagrees",
            f"Speed-up over bound {min(realised):.2f} to {max(realised):.2f}; the paper's is .44 to .96.",
        ),
    ]
    return Result(tables=[_published(), ours], claims=claims, data=data)


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
    """Speed-up and bound, and the loss's difference, over tau."""
    from .plots import COLOURS

    left, right = figure.subplots(1, 2)
    taus = [float(tau) for tau in found.data]
    rows = list(found.data.values())
    left.plot(taus, [row["bound"] for row in rows], "--", color="#666666", label="bound (Table 1)")
    left.plot(taus, [row["speedup"] for row in rows], "o-", color=COLOURS[0], label="synthetic routing")
    left.plot(taus, [row["learned_speedup"] for row in rows], "s-", color=COLOURS[1], label="learned routing")
    left.set_xlabel("τ")
    left.set_ylabel("expert throughput over vanilla (×)")
    left.legend()
    for tau, row in zip(taus, rows, strict=True):
        right.plot([tau] * len(row["difference"]), row["difference"], "o", color=COLOURS[0], alpha=0.6)
    right.axhline(0, color="#666666", linewidth=1)
    right.set_xlabel("τ")
    right.set_ylabel("validation loss − vanilla's (nats per token)")


EXPERIMENT = Experiment(
    name="table3",
    title="Table 3: expert throughput and quality over τ",
    variants=[VANILLA, *map(with_tau, TAUS)],
    result=result,
    draw=draw,
)

if __name__ == "__main__":
    from .entry import main

    main(EXPERIMENT.name)
