"""The demo's tables, on the console and in ``report.html``, and what to conclude from them."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table as ConsoleTable

from ..analyze import Figure, Report, Table, write_report
from ..train import validation_sources
from .demo_compare import Comparison, ModelResult

Row = tuple[str, str, str]


def print_tables(comparison: Comparison, console: Console) -> None:
    """The same tables as the page's, and its conclusion."""
    for table in _tables(comparison):
        shown = ConsoleTable(title=table.title, caption=table.caption, title_justify="left", caption_justify="left")
        for index, name in enumerate(table.head):
            shown.add_column(name, justify="right" if index else "left")
        for row in table.rows:
            shown.add_row(*row)
        console.print(shown)
    for name, model in comparison.models.items():
        console.print(f"{name} continues:", style="dim")
        console.print(model.sample, highlight=False, markup=False)
    for line in _conclusion(comparison):
        console.print(f"• {line}", highlight=False)


def write_demo_report(comparison: Comparison, path: Path, minutes: float) -> None:
    """Writes the page."""
    report = Report(
        title="MoE++ and its vanilla twin",
        lead="Two small language models, trained on the same text from the same seed for the same number of steps: one "
        "with zero-computation experts (MoE++), one with the same FFN experts alone (vanilla).",
        tables=_tables(comparison),
        conclusion=_conclusion(comparison),
        figures=_figures(comparison),
        samples={name: model.sample for name, model in comparison.models.items()},
        facts=comparison.facts | {"time": f"{minutes:.1f} minutes for both models, evaluation and benchmark together"},
    )
    write_report(report, path)


def _tables(comparison: Comparison) -> list[Table]:
    models = list(comparison.models.values())
    head = ["", *comparison.models]
    return [
        Table(
            "Both models",
            "Validation on held-out modules, weighted like the training mixture.",
            head,
            _overview(models),
        ),
        Table(
            "Expert forward throughput",
            "FFN and zero-computation experts, without the router. Synthetic: every expert at exactly the load that "
            "tau implies. Learned: what these models chose on held-out text. The two are not to be mixed.",
            ["MoE++ against vanilla", "synthetic routing", "learned routing"],
            _throughput(comparison),
        ),
        Table(
            "FFN share of the choices, by layer",
            f"Aimed at is what tau = {comparison.tau:g} implies once Eq. 7 is balanced; a short run at "
            f"beta = {comparison.beta:g} need not reach it.",
            ["layer", "reached", "aimed at", "FFN experts per token"],
            [
                (str(layer), f"{share:.1%}", f"{models[0].ffn_share_target:.1%}", f"{per_token:.2f}")
                for layer, (share, per_token) in enumerate(
                    zip(models[0].ffn_share, models[0].ffn_per_token, strict=True)
                )
            ],
        ),
    ]


def _overview(models: Sequence[ModelResult]) -> list[tuple[str, ...]]:
    rows = [
        ("parameters", *(f"{m.parameters:,}" for m in models)),
        ("activated per token, at most", *(f"{m.activated_parameters:,}" for m in models)),
        ("activated per token, at tau's balance", *(f"{m.expected_activated_parameters:,.0f}" for m in models)),
        ("validation loss, nats per token", *(f"{m.validation['eval_loss']:.4f}" for m in models)),
        ("bits per byte, all", *(f"{m.validation['eval_bits_per_byte']:.4f}" for m in models)),
    ]
    for source in validation_sources(models[0].validation):
        rows.append(
            (f"bits per byte, {source}", *(f"{m.validation[f'eval_{source}_bits_per_byte']:.4f}" for m in models))
        )
    rows.append(("training, tokens per second", *(f"{m.training_tokens_per_second:,.0f}" for m in models)))
    rows.append(("FFN experts per token", *(f"{statistics.mean(m.ffn_per_token):.2f}" for m in models)))
    return rows


def _throughput(comparison: Comparison) -> list[Row]:
    ours, twin = comparison.models["MoE++"].throughput, comparison.models["vanilla"].throughput
    kinds = ("synthetic", "learned")
    lines = {
        "MoE++, tokens per second": [f"{ours[k].tokens_per_second:,.0f} ± {ours[k].spread / 2:.0%}" for k in kinds],
        "vanilla, tokens per second": [f"{twin[k].tokens_per_second:,.0f} ± {twin[k].spread / 2:.0%}" for k in kinds],
        "gain": [f"{ours[k].speedup - 1:+.1%}" for k in kinds],
        "bound on the gain": [f"{ours[k].bound - 1:+.1%}" for k in kinds],
        "speed-up over its bound": [f"{ours[k].speedup / ours[k].bound:.2f}" for k in kinds],
        "FFN experts per token": [f"{ours[k].ffn_per_token:.2f}" for k in kinds],
    }
    return [(name, *cells) for name, cells in lines.items()]  # pyright: ignore[reportReturnType]


def _conclusion(comparison: Comparison) -> list[str]:
    ours, twin = comparison.models["MoE++"], comparison.models["vanilla"]
    difference = ours.validation["eval_loss"] - twin.validation["eval_loss"]
    word = "lower" if difference < 0 else "higher"
    used = statistics.mean(ours.ffn_per_token) / comparison.top_k
    reached, aimed = statistics.mean(ours.ffn_share), ours.ffn_share_target
    learned, synthetic = ours.throughput["learned"], ours.throughput["synthetic"]
    return [
        f"MoE++ ends with a validation loss {abs(difference):.4f} nats {word} than its vanilla twin's, using "
        f"{used:.0%} of the twin's expert FLOPs on held-out text.",
        f"Its experts run {learned.speedup:.2f}× as fast at the routing it learned (bound {learned.bound:.2f}×) and "
        f"{synthetic.speedup:.2f}× at exactly tau's share (bound {synthetic.bound:.2f}×).",
        f"{reached:.0%} of its choices are FFN experts; tau aims at {aimed:.0%}. Compare losses with that in mind: "
        "a model that computes more also learns more.",
        "What this does not show: one seed, small models and a short run. A loss difference of a tenth can be "
        "chance, and nothing here says what happens at the paper's scale.",
    ]


def _figures(comparison: Comparison) -> list[Figure]:
    from ..analyze import plots

    models = comparison.models
    ours = models["MoE++"]
    aim = {"MoE++": comparison.top_k * ours.ffn_share_target}
    names = [f"{kind} {index}" for index, kind in enumerate(ours.expert_types)]
    return [
        Figure(
            "Loss",
            "Language-modelling loss without the balance loss.",
            plots.loss_curves(
                {name: _series(model, "lm_loss") for name, model in models.items()},
                {name: _series(model, "eval_loss") for name, model in models.items()},
            ),
        ),
        Figure(
            "FFN experts per token while training",
            "Averaged over the layers; the dashed line is what tau implies.",
            plots.lines_over_steps(
                {name: _series(model, "ffn_per_token") for name, model in models.items()},
                label="FFN experts per token",
                targets=aim,
            ),
        ),
        Figure(
            "FFN experts per token by layer",
            "On held-out text, after training.",
            plots.ffn_per_token({name: model.ffn_per_token for name, model in models.items()}, aim),
        ),
        Figure(
            "Expert load of MoE++",
            "Share of each layer's choices on held-out text: blue FFN, orange constant, green copy, grey zero experts.",
            plots.expert_load(ours.expert_load, names, ours.expert_types),
        ),
    ]


def _series(model: ModelResult, key: str) -> tuple[list[float], list[float]]:
    entries = [entry for entry in model.log if entry.get(key) is not None]
    return [entry["step"] for entry in entries], [entry[key] for entry in entries]
