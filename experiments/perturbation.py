"""Robustness: what it costs when the router's choice is perturbed, by noise or by swapping kinds of experts.

Only the choice is perturbed. Whatever is chosen, its weight is what the model's own rule makes of the *clean*
probabilities of the chosen experts, and the logits that the next layer's router receives (Eq. 6) are the clean ones.
Noise is Gaussian on the routing scores, in units of each token's standard deviation over the experts; its end point is
choosing at random. A swap puts, at a rate p a choice, a random expert of the other kind, FFN or zero-computation, in
the chosen one's place; its control puts another expert of the same kind there.
"""

import statistics
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from rich.progress import track
from torch import Tensor

from moepp.config import MoEConfig
from moepp.layers import Routing
from moepp.model import MoEPPForCausalLM

from .experiment import Experiment
from .held_out import measure, spread
from .lab import Lab
from .outcomes import above, all_of, below
from .paired import Paired, interval, paired
from .result import Claim, Result, Table
from .text import nats, said
from .variants import MOEPP, VANILLA, Variant

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NOISE = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0)
RATES = (0.0, 0.05, 0.1, 0.25, 0.5, 1.0)
RANDOM = "random"
NOISES, SAME, OTHER = "noise", "same kind", "other kind"
_BLOCKS = 8
"""Of each source's held-out text."""

Edit = Callable[[Routing], Routing]


def noise(scale: float | None, config: MoEConfig, seed: int = 0) -> Edit:
    """Chooses by the scores plus noise of ``scale`` of each token's standard deviation; None: by noise alone."""
    generator = torch.Generator().manual_seed(seed)

    def edit(routing: Routing) -> Routing:
        # Normalised or not, the scores are the logits times a number a token, and so is the noise.
        drawn = torch.randn(routing.logits.shape, generator=generator).to(routing.logits)
        ranking = drawn if scale is None else routing.logits + scale * routing.logits.std(-1, keepdim=True) * drawn
        return chosen_instead(routing, ranking.argsort(dim=-1, descending=True, stable=True)[:, : config.top_k], config)

    return edit


def swap(rate: float, config: MoEConfig, *, other: bool, seed: int = 0) -> Edit:
    """Replaces each choice, at this rate, by a random expert of the other kind, or of the same.

    A token's choices stay different from each other, so the replacement is none that it already has.
    """
    generator, layout = torch.Generator().manual_seed(seed), config.layout()

    def edit(routing: Routing) -> Routing:
        device = routing.expert.device
        drawn = torch.rand(routing.probs.shape, generator=generator).to(device)
        swapped = torch.rand(routing.expert.shape, generator=generator).to(device) < rate
        drawn = drawn.scatter(-1, routing.expert, -1.0)
        is_ffn = torch.arange(layout.num_experts, device=device) < layout.ffn
        wanted = (routing.expert < layout.ffn) ^ other
        # The k-th slot takes its kind's k-th in a random order.
        ffn, rest = (drawn.masked_fill(~kind, -2.0).argsort(-1, descending=True) for kind in (is_ffn, ~is_ffn))
        instead = torch.where(wanted, ffn[:, : config.top_k], rest[:, : config.top_k])
        return chosen_instead(routing, torch.where(swapped, instead, routing.expert), config)

    return edit


def chosen_instead(routing: Routing, expert: Tensor, config: MoEConfig) -> Routing:
    """The routing had these experts been chosen: weights from the clean probabilities, by the model's rule."""
    assert config.combine in ("probabilities", "renormalize")
    weight = routing.probs.gather(-1, expert)
    if config.combine == "renormalize":
        weight = weight / weight.sum(-1, keepdim=True)
    return routing._replace(expert=expert, weight=weight)


def _settings(config: MoEConfig) -> dict[tuple[str, str], Edit]:
    found = {(NOISES, str(scale)): noise(scale, config) for scale in NOISE}
    found[NOISES, RANDOM] = noise(None, config)
    for kind, other in ((SAME, False), (OTHER, True)):
        if not other or config.layout().num_zero_computation:
            found |= {(kind, str(rate)): swap(rate, config, other=other) for rate in RATES}
    return found


def _study(model: MoEPPForCausalLM, blocks: Mapping[str, Tensor]) -> dict[tuple[str, str], tuple[float, float]]:
    """Loss and FFN experts per token in every setting."""
    config, found = model.config.moe, {}
    for setting, edit in _settings(config).items():
        losses, stats = measure(model, blocks, routing_edit=edit)
        ffn = statistics.fmean(layer.ffn_per_token(config.layout()) for layer in stats)
        found[setting] = statistics.fmean(losses.values()), ffn
    return found


def result(lab: Lab) -> Result:
    """The loss over both kinds of perturbation."""
    length = lab.run(VANILLA, lab.scale.seeds[0]).recipe().data.sequence_length
    blocks = {source: spread(all_, _BLOCKS) for source, all_ in lab.blocks(length).items()}
    models = [(variant, seed) for variant in (MOEPP, VANILLA) for seed in lab.records(variant)]
    data: dict[str, Any] = {MOEPP.name: {}, VANILLA.name: {}}
    for variant, seed in track(models, "perturbing", console=lab.pool.console, transient=True):
        for (kind, level), (loss, ffn) in _study(lab.model(variant, seed), blocks).items():
            at = data[variant.name].setdefault(kind, {}).setdefault(level, {"loss": {}, "ffn_per_token": {}})
            at["loss"][seed], at["ffn_per_token"][seed] = loss, ffn
    tokens = sum(all_.numel() for all_ in blocks.values())
    return Result(
        tables=[_noise_table(data), _swap_table(data)],
        claims=_claims(data),
        limits=[
            f"{tokens:,} tokens of held-out text, the same at every setting; one draw of noise a setting.",
            "Weights come from the clean probabilities of whatever was chosen: a bad choice beside a good one gets "
            "little weight. Noise that also reached the weights would cost more.",
            "A swap changes the work as well as the choice: see the FFN experts per token.",
            "Small models, trained briefly, have experts that differ less than those of large ones: their routing may "
            "matter less.",
        ],
        data=data,
    )


def increase(data: Mapping[str, Any], variant: Variant, kind: str, level: str) -> dict[Any, float]:
    """Of the loss over the unperturbed model's, by seed."""
    of = data[variant.name][kind]
    return {seed: loss - of["0.0"]["loss"][seed] for seed, loss in of[level]["loss"].items()}


def _ours_less(data: Mapping[str, Any], ours: tuple[Variant, str, str], theirs: tuple[Variant, str, str]) -> Paired:
    return paired(increase(data, *ours), increase(data, *theirs))


def _cells(data: Mapping[str, Any], variant: Variant, kind: str, level: str) -> list[str]:
    if kind not in data[variant.name]:
        return ["", ""]
    ffn = statistics.fmean(data[variant.name][kind][level]["ffn_per_token"].values())
    if level == "0.0":
        return [f"loss {statistics.fmean(data[variant.name][kind][level]['loss'].values()):.4f}", f"{ffn:.3f}"]
    return [said(interval(list(increase(data, variant, kind, level).values()))), f"{ffn:.3f}"]


_HEAD = ("increase of the loss, 95 %", "FFN experts per token")


def _noise_table(data: Mapping[str, Any]) -> Table:
    rows = []
    for level in (*map(str, NOISE), RANDOM):
        name = "random choice" if level == RANDOM else f"σ = {float(level):g}"
        difference = ""
        if level != "0.0":
            difference = said(_ours_less(data, (MOEPP, NOISES, level), (VANILLA, NOISES, level)))
        cells = [_cells(data, variant, NOISES, level) for variant in (MOEPP, VANILLA)]
        rows.append([name, *cells[0], *cells[1], difference])
    head = [f"{variant.name}: {text}" for variant in (MOEPP, VANILLA) for text in _HEAD]
    return Table(
        "Noise on the routing scores",
        ["", *head, "MoE++'s increase − vanilla's"],
        rows,
        "σ: in standard deviations of each token's scores over the experts. Nats per token, paired by seed.",
    )


def _swap_table(data: Mapping[str, Any]) -> Table:
    curves = ((MOEPP, OTHER), (MOEPP, SAME), (VANILLA, SAME))
    rows = [
        [f"p = {rate:g}", *(cell for variant, kind in curves for cell in _cells(data, variant, kind, str(rate)))]
        for rate in RATES
    ]
    return Table(
        "Choices swapped at rate p",
        ["", *(f"{variant.name}, for one of the {kind}: {text}" for variant, kind in curves for text in _HEAD)],
        rows,
        "Kinds: FFN and zero-computation experts. Nats per token, paired by seed.",
    )


def _claims(data: Mapping[str, Any]) -> list[Claim]:
    one, end = (_ours_less(data, (MOEPP, NOISES, at), (VANILLA, NOISES, at)) for at in ("1.0", RANDOM))
    kinds = _ours_less(data, (MOEPP, OTHER, "0.1"), (MOEPP, SAME, "0.1"))
    same = _ours_less(data, (MOEPP, SAME, "0.1"), (VANILLA, SAME, "0.1"))
    tenth = interval(list(increase(data, MOEPP, OTHER, "0.1").values()))
    costs = {
        f"{variant.name}, {kind}, {level}": interval([*increase(data, variant, kind, level).values()])
        for variant in (MOEPP, VANILLA)
        for kind, levels in data[variant.name].items()
        for level in levels
        if level != "0.0"
    }
    least = min(costs, key=lambda setting: costs[setting].low)
    return [
        Claim("Noise of one standard deviation costs MoE++ less than vanilla.", below(one), nats(one)),
        Claim("Choosing at random costs MoE++ less than vanilla.", below(end), nats(end)),
        Claim(
            "Swapping a tenth of the choices for others of the same kind costs MoE++ less than vanilla.",
            below(same),
            nats(same),
        ),
        Claim("Swapping a tenth of MoE++'s choices for the other kind costs.", above(tenth), nats(tenth)),
        Claim(
            "Swapping a tenth of MoE++'s choices for the other kind costs more than for the same kind.",
            above(kinds),
            nats(kinds),
        ),
        Claim(
            "Every perturbation costs, of MoE++ and of vanilla.",
            all_of(map(above, costs.values())),
            f"{sum(above(one) == 'agrees' for one in costs.values())} of {len(costs)} settings are resolved to; the "
            f"interval that reaches lowest is that of {least}: {nats(costs[least])}.",
        ),
    ]


def draw(found: Result, figure: "Figure") -> None:
    """The increase of the loss over the scale of the noise, and over the rate of swapping."""
    from .plots import COLOURS

    left, right = figure.subplots(1, 2, sharey=True)
    for variant, colour, marker in ((MOEPP, COLOURS[0], "o"), (VANILLA, COLOURS[1], "s")):
        _curve(left, found, variant, NOISES, colour, marker, variant.name)
        _curve(right, found, variant, SAME, colour, marker, f"{variant.name}, same kind", "--")
        end = statistics.fmean(increase(found.data, variant, NOISES, RANDOM).values())
        left.axhline(end, color=colour, linewidth=1, linestyle=":", label=f"{variant.name}, random choice")
    _curve(right, found, MOEPP, OTHER, COLOURS[0], "^", "MoE++, other kind")
    left.set_xlabel("noise (σ of a token's scores)")
    left.set_xscale("symlog", linthresh=0.1, linscale=0.5)
    left.set_xticks(NOISE, [f"{scale:g}" for scale in NOISE])
    left.minorticks_off()
    left.set_xlim(left=0)
    left.set_ylabel("increase of the loss (nats per token)")
    right.set_xlabel("choices swapped (p)")
    for axes in (left, right):
        axes.legend(fontsize=8)


def _curve(
    axes: "Axes", found: Result, variant: Variant, kind: str, colour: str, marker: str, label: str, line: str = "-"
) -> None:
    """The mean over the seeds, and each seed as a faint point."""
    levels = [level for level in found.data[variant.name][kind] if level != RANDOM]
    values = [list(increase(found.data, variant, kind, level).values()) for level in levels]
    x = [float(level) for level in levels]
    axes.plot(x, [statistics.fmean(of) for of in values], line, color=colour, marker=marker, markersize=4, label=label)
    for place, of in zip(x, values, strict=True):
        axes.plot([place] * len(of), of, marker, color=colour, alpha=0.35, markersize=3, markeredgewidth=0)


EXPERIMENT = Experiment(
    name="perturbation",
    title="Check 3: the router's choice perturbed",
    variants=[MOEPP, VANILLA],
    result=result,
    draw=draw,
)

if __name__ == "__main__":
    from .entry import main

    main(EXPERIMENT.name)
