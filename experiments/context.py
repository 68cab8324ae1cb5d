"""Routing over the length of the context: does a token keep its experts when the model sees more before it?

A window that ends at the same place of the text is made longer, from a sixteenth of the trained context to all of it,
and the routing of the same last tokens is compared with the shortest window's. Two controls: the shortest window at the
positions that these tokens have in the longest one, which moves the position encoding and nothing else; and the longest
window with everything before the shortest one taken from other text, which is as long and tells nothing.
By position, each token of the longest windows is compared with itself in a window of the shortest length, so that what
stands where in a text cancels out; the loss by position says whether the model uses its context at all.
"""

import statistics
from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from rich.progress import track
from torch import Tensor

from .experiment import Experiment
from .lab import Lab, cut
from .outcomes import above, below, within
from .paired import Paired, interval, paired
from .result import Claim, Result, Table
from .text import level, nats, said
from .variants import LONG_CONTEXT
from .windows import FOREIGN, SHIFTED, edges, mean, study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LENGTHS = 5
"""Context lengths, each twice the one before; the last is the trained one."""
BLOCKS = 3
"""Of each source, of the trained context's length."""
STABLE, DRIFT = 0.9, 0.02
"""What counts as stable: tokens that keep their experts, and the change of FFN experts per token."""


def result(lab: Lab) -> Result:
    """Agreement over the context's length, and experts and loss by position, for all seeds."""
    seeds = list(lab.records(LONG_CONTEXT))
    recipe = lab.run(LONG_CONTEXT, seeds[0]).recipe()
    context = recipe.data.sequence_length
    lengths = [context >> shift for shift in reversed(range(LENGTHS))]
    blocks, whole = _blocks(lab, seeds[0], context)
    studies = []
    for seed in seeds:
        model = lab.model(LONG_CONTEXT, seed)
        pairs = list(zip(blocks, blocks[1:] + blocks[:1], strict=True))
        found = [
            study(model, block, other, lengths)
            for block, other in track(pairs, f"context, seed {seed}", console=lab.pool.console, transient=True)
        ]
        studies.append(mean(found))
    data: dict[str, Any] = {
        "lengths": lengths,
        "positions": edges(context, lengths[0]),
        "seeds": dict(zip(seeds, studies, strict=True)),
    }
    tokens = recipe.training["max_steps"] * recipe.samples_per_step * context
    return Result(
        tables=[_agreement_table(data), _layer_table(data, lab), _position_table(data)],
        claims=_claims(data),
        limits=[
            f"Trained for {recipe.training['max_steps']} steps on {tokens / 1e6:.2g}M tokens in windows of {context}; "
            "a model trained for longer may make more of far context, and its routing depend on it more.",
            f"{len(blocks)} windows of held-out text, {whole} of them from a single document (the longest ones), the "
            "others from documents one after the other, as in training. Intervals are over the seeds, not over texts.",
            f"Tokens compared: the last {lengths[0] // 2} of each window, so that each sees {lengths[0] // 2} to "
            f"{lengths[0]} tokens in the shortest.",
            "Positions are rotary, so that moving all of them together changes nothing but rounding: the row of other "
            "positions checks the measurement, and says nothing of the model.",
            "Longer than trained was not tried.",
        ],
        data=data,
    )


def _blocks(lab: Lab, seed: int, context: int) -> tuple[list[Tensor], int]:
    """Windows of every source, the longest documents first, and how many lie within one document."""
    tokenizer, found, whole = lab.tokenizer(LONG_CONTEXT, seed), [], 0
    for documents in lab.text.values():
        chosen = cut(sorted(documents, key=len, reverse=True), tokenizer, context)[:BLOCKS]
        found += chosen
        whole += sum(tokenizer.eos_token_id not in block[:-1] for block in chosen)
    return found, whole


def _over_seeds(data: Mapping[str, Any], name: str, field: str) -> Paired:
    return interval([_number(one[name][field]) for one in data["seeds"].values()])


def _change(data: Mapping[str, Any], name: str, field: str, base: str) -> Paired:
    ours, theirs = ({seed: _number(one[row][field]) for seed, one in data["seeds"].items()} for row in (name, base))
    return paired(ours, theirs)


def _number(value: Any) -> float:
    """By layer or not."""
    return statistics.fmean(value) if isinstance(value, list) else value


def _agreement_table(data: Mapping[str, Any]) -> Table:
    lengths, rows = data["lengths"], []
    names = {str(length): f"{length:,} tokens" for length in lengths}
    names |= {SHIFTED: f"{lengths[0]:,}, at the positions of {lengths[-1]:,}"}
    names |= {FOREIGN: f"{lengths[-1]:,}, all but the last {lengths[0]:,} from other text"}
    shortest = str(lengths[0])
    for name, text in names.items():
        row = [text]
        for field in ("same_experts", "same_count"):
            row.append("" if name == shortest else level(_over_seeds(data, name, field), "%", times=100, digits=1))
        for field in ("ffn", "loss"):
            found = _over_seeds(data, name, field)
            row.append(f"{found.mean:.4f}" if name == shortest else said(_change(data, name, field, shortest)))
        rows.append(row)
    return Table(
        f"The same tokens seen with more context than {lengths[0]:,} tokens",
        ["context", "same experts, 95 %", "same number of FFN experts", "FFN experts per token", "loss"],
        rows,
        "Shares of tokens, mean over layers. FFN experts and loss (nats): the first row's values, then changes "
        "from it.",
    )


def _layer_table(data: Mapping[str, Any], lab: Lab) -> Table:
    studies = list(data["seeds"].values())
    layers = len(studies[0][SHIFTED]["same_experts"])
    names = [*map(str, data["lengths"][1:]), SHIFTED, FOREIGN]
    rows = [
        [f"layer {layer}", *(f"{statistics.fmean(s[n]['same_experts'][layer] for s in studies):.1%}" for n in names)]
        for layer in range(layers)
    ]
    return Table(
        "Tokens with the same experts, by layer", ["", *names], rows, f"Mean over {len(lab.scale.seeds)} seeds."
    )


def _position_change(data: Mapping[str, Any], place: int, field: str) -> Paired:
    found = [one["positions"][place] for one in data["seeds"].values()]
    return interval([one[field] - one[f"short_{field}"] for one in found])


def _position_table(data: Mapping[str, Any]) -> Table:
    bounds, rows = data["positions"], []
    for place, (begin, stop) in enumerate(pairwise(bounds)):
        row = [f"{begin:,} to {stop - 1:,}"]
        for field in ("ffn", "loss"):
            found = interval([one["positions"][place][field] for one in data["seeds"].values()])
            row.append(level(found, digits=3))
            # A window begins as a short one does: equal but for rounding.
            row.append("" if stop <= data["lengths"][0] else said(_position_change(data, place, field)))
        rows.append(row)
    short = f"− in windows of {data['lengths'][0]:,}"
    return Table(
        f"By position in windows of {data['lengths'][-1]:,}",
        ["position", "FFN experts per token, 95 %", short, "loss, 95 %", short],
        rows,
        "The same tokens in short windows are what their place in the text makes them; the rest is the context's.",
    )


def _claims(data: Mapping[str, Any]) -> list[Claim]:
    shortest, longest = (str(data["lengths"][index]) for index in (0, -1))
    kept, drift = _over_seeds(data, longest, "same_experts"), _change(data, longest, "ffn", shortest)
    loss = _change(data, longest, "loss", shortest)
    other = _change(data, FOREIGN, "same_experts", longest)
    window = f"when the model sees {int(longest):,} tokens instead of {int(shortest):,}"
    return [
        Claim(
            f"At least {STABLE:.0%} of the tokens keep their experts {window}.",
            above(kept, STABLE),
            level(kept, "%", times=100, digits=1),
        ),
        Claim(
            f"The FFN experts per token change by less than {DRIFT} {window}.",
            within(drift, -DRIFT, DRIFT),
            said(drift, "FFN experts per token"),
        ),
        Claim(
            "More tokens change their experts when the far context is other text than when it is their own.",
            below(other),
            f"Share that keeps them, other text − own: {said(other, 'points', times=100, digits=2)}.",
        ),
        Claim(f"The model uses its context: its loss is lower {window}.", below(loss), nats(loss), origin="control"),
    ]


def draw(found: Result, figure: "Figure") -> None:
    """Agreement over the context's length; FFN experts and loss by position, each beside the same in short windows."""
    from .plots import COLOURS

    data = found.data
    figure.set_size_inches(7.2, 5.4)
    grid = figure.subplot_mosaic([["agreement", "agreement"], ["ffn", "loss"]])
    axes, lengths = grid["agreement"], data["lengths"]
    for field, colour, marker, label in (
        ("same_experts", COLOURS[0], "o", "same experts"),
        ("same_count", COLOURS[1], "s", "same number of FFN experts"),
    ):
        lines = [_over_seeds(data, str(length), field) for length in lengths[1:]]
        axes.plot(lengths[1:], [100 * one.mean for one in lines], color=colour, marker=marker, label=label)
        for length, one in zip(lengths[1:], lines, strict=True):
            axes.plot([length] * len(one.values), [100 * v for v in one.values], marker, color=colour, alpha=0.35)
        control = _over_seeds(data, FOREIGN, field)
        axes.plot([lengths[-1]], [100 * control.mean], marker, mfc="white", color=colour, label=f"{label}, other text")
    axes.set_xlabel("context (tokens)")
    axes.set_ylabel(f"as with {lengths[0]:,} tokens\n(% of tokens, mean over layers)")
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths[1:], [f"{length:,}" for length in lengths[1:]])
    axes.legend(fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    bounds = data["positions"]
    middles = [(begin + stop) / 2 for begin, stop in pairwise(bounds)]
    for name, label in (("ffn", "FFN experts per token"), ("loss", "loss (nats per token)")):
        for prefix, colour, marker, text in (
            ("", COLOURS[0], "o", f"in windows of {lengths[-1]:,}"),
            ("short_", COLOURS[1], "s", f"same tokens, windows of {lengths[0]:,}"),
        ):
            bins = [
                interval([one["positions"][place][prefix + name] for one in data["seeds"].values()])
                for place in range(len(middles))
            ]
            grid[name].plot(middles, [one.mean for one in bins], color=colour, marker=marker, ms=4, label=text)
            if len(bins[0].values) > 1:
                low, high = [one.low for one in bins], [one.high for one in bins]
                grid[name].fill_between(middles, low, high, color=colour, alpha=0.15, linewidth=0)
        grid[name].set_xlabel("position in the window (tokens)")
        grid[name].set_ylabel(label)
        grid[name].set_xscale("log", base=2)
        grid[name].set_xticks(bounds[1::2], [f"{bound:,}" for bound in bounds[1::2]], fontsize=8)
        grid[name].legend(fontsize=7, loc="lower left", bbox_to_anchor=(0, 1))


EXPERIMENT = Experiment(
    name="context",
    title="Check 2: routing over the length of the context",
    variants=[LONG_CONTEXT],
    result=result,
    draw=draw,
)

if __name__ == "__main__":
    from .entry import main

    main(EXPERIMENT.name)
