"""Table 6: gating residuals, on MoE++ and on a vanilla MoE."""

import statistics
from typing import TYPE_CHECKING

import torch

from moepp.layers import Router

from . import paper
from .compare import compared, draw_differences, setup
from .experiment import Experiment
from .lab import Lab
from .outcomes import below
from .paired import paired
from .result import Claim, Result
from .text import nats
from .variants import MOEPP, NO_RESIDUAL, VANILLA, VANILLA_RESIDUAL, Variant

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROWS = dict(zip(paper.TABLE_6, (VANILLA, VANILLA_RESIDUAL, NO_RESIDUAL, MOEPP), strict=True))
VANILLA_ROW, VANILLA_WITH, WITHOUT, WITH = ROWS
_BLOCKS = 8


def result(lab: Lab) -> Result:
    """Ours beside the paper's, and how much of the routers' logits the residual makes up."""
    tables, data = compared(lab, ROWS, [VANILLA_ROW, WITHOUT], paper.TABLE_6)
    shares = {name: [_share(lab, ROWS[name], seed) for seed in lab.losses(ROWS[name])] for name in (VANILLA_WITH, WITH)}
    pairs = {
        "Gating residuals improve MoE++.": (MOEPP, NO_RESIDUAL),
        "Gating residuals improve a vanilla MoE.": (VANILLA_RESIDUAL, VANILLA),
        "MoE++ is better than vanilla even without gating residuals.": (NO_RESIDUAL, VANILLA),
    }
    found = {text: lab.difference(*pair) for text, pair in pairs.items()}
    claims = [Claim(text, below(difference), nats(difference)) for text, difference in found.items()]
    said = " and ".join(f"{statistics.fmean(values):.0%} in {name}" for name, values in shares.items())
    limits = [
        "W^g starts at 0, which the paper leaves open, and has a few hundred steps to become something: after "
        f"training the deviation of W^g G over that of the logits that it is part of is {said}, over the layers that "
        "have one.",
        setup(lab),
    ]
    for name, values in shares.items():
        data[name]["residual_share"] = values
    return Result(tables=tables, claims=claims, limits=limits, data=data)


def _share(lab: Lab, variant: Variant, seed: int) -> float:
    """The standard deviation of W^g G over the logits', the mean over the layers after the first."""
    blocks = lab.blocks(lab.run(variant, seed).recipe().data.sequence_length)
    batch = torch.stack([block for source in blocks.values() for block in source[:_BLOCKS]]).to(lab.device)
    model = lab.model(variant, seed)
    with torch.inference_mode():
        logits = [layer.logits for layer in model(batch, output_routing=True, use_cache=False).routing]
        routers = [module for module in model.modules() if isinstance(module, Router)]
        ratios = [
            float(router.residual(before).std() / after.std())
            for router, before, after in zip(routers[1:], logits, logits[1:], strict=False)
            if router.residual is not None
        ]
    return statistics.fmean(ratios)


def draw(found: Result, figure: "Figure") -> None:
    """What gating residuals change, seed by seed."""
    from .plots import COLOURS

    axes = figure.subplots()
    loss = {name: one["loss"] for name, one in found.data.items()}
    rows = {
        "MoE++": paired(loss[WITH], loss[WITHOUT]).values,
        "vanilla MoE": paired(loss[VANILLA_WITH], loss[VANILLA_ROW]).values,
    }
    draw_differences(axes, rows, colour=COLOURS[0])
    axes.set_xlabel("validation loss with − without gating residuals (nats per token)")


EXPERIMENT = Experiment(
    name="table6",
    title="Table 6: gating residuals on MoE++ and on vanilla",
    variants=list(ROWS.values()),
    result=result,
    draw=draw,
)

if __name__ == "__main__":
    from .entry import main

    main(EXPERIMENT.name)
