"""``moepp eval``: a trained model's scores on tasks, and its loss on text."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.progress import Progress
from transformers.utils import logging

from ..bench import facts
from ..data import DataSpec, SourceSpec, load_corpus, read_files
from ..errors import ConfigError, DataError
from ..evaluate import SEEDS, VALIDATION_FRACTION, Evaluation, TextLoss, evaluate_tasks, items_hash, text_loss
from ..model import MoEPPForCausalLM
from ..train import RECIPE_FILE, load_recipe
from .eval_report import print_scores, print_skipped, print_text_losses
from .generate import open_saved
from .options import require_at_least_one, require_writable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STDLIB = "stdlib"
SOME_SKIPPED = 3
"""Exit code when some of the tasks could not be evaluated; when none could, it is an error's."""


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """What the command line said."""

    tasks: list[str]
    perplexity: str | None
    limit: int | None
    json: Path | None
    include_path: list[Path]
    batch_size: int
    device: str
    dtype: str
    window: int | None
    stride: int | None


def run_eval(path: Path, options: EvalOptions) -> None:
    """Prints the tables and writes their numbers as JSON.

    Raises:
        ConfigError, DataError, BackendUnavailable: an option, the model or the data cannot be used, or none of the
            tasks could be evaluated.
    """
    _check(options)
    console = Console()
    logging.disable_progress_bar()
    model, tokenizer = open_saved(path, dtype=options.dtype, device=options.device)
    fraction = _held_out_fraction(path)
    kind = {"dtype": str(model.dtype).removeprefix("torch."), "device": str(model.device)}
    report = {"model": str(path)} | kind | facts() | {"seed": SEEDS}
    if options.perplexity is not None:
        losses = _text_losses(model, tokenizer, options, fraction, console)
        print_text_losses(losses, console)
        report["perplexity"] = {
            name: asdict(loss) | {k: getattr(loss, k) for k in ("loss", "perplexity", "bits_per_byte")}
            for name, loss in losses.items()
        }
    evaluation = Evaluation([], [])
    if options.tasks:
        evaluation = evaluate_tasks(
            model,
            tokenizer,
            options.tasks,
            include_path=options.include_path,
            limit=options.limit,
            batch_size=options.batch_size,
            validation_fraction=fraction,
            announce=lambda text: console.print(text, style="dim", highlight=False),
        )
        print_scores(str(path), evaluation, console)
        print_skipped(evaluation, console)
        report |= _scores(evaluation, fraction)
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if evaluation.skipped and not evaluation.scores:
        names = ", ".join(skipped.label for skipped in evaluation.skipped)
        raise DataError(f"none of the tasks could be evaluated ({names}); connect, or fill the libraries' cache")
    if evaluation.skipped:
        raise typer.Exit(SOME_SKIPPED)


def _check(options: EvalOptions) -> None:
    """Refuses at once what would be found out after minutes."""
    if not options.tasks and options.perplexity is None:
        raise ConfigError("there is nothing to evaluate on; give --tasks or --perplexity, or both")
    require_at_least_one(options, "limit", "batch_size")
    if options.json is not None:
        require_writable("--json", options.json)


def _held_out_fraction(path: Path) -> float:
    """What share of the standard library the model's run held out; the default where there is no recipe to ask."""
    if not (path / RECIPE_FILE).is_file():
        return VALIDATION_FRACTION
    data = load_recipe(path / RECIPE_FILE).data
    trained_on_it = any(source.python_library for source in data.sources)
    return min(data.validation_fraction, VALIDATION_FRACTION) if trained_on_it else VALIDATION_FRACTION


def _text_losses(
    model: MoEPPForCausalLM,
    tokenizer: "PreTrainedTokenizerBase",
    options: EvalOptions,
    fraction: float,
    console: Console,
) -> dict[str, TextLoss]:
    """By source; with more than one, their sum too."""
    with console.status("reading the text"):
        texts = _texts(str(options.perplexity), fraction)
    losses = {}
    for name, documents in texts.items():
        with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
            bar = progress.add_task(name)
            losses[name] = text_loss(
                model,
                tokenizer,
                documents,
                window=options.window,
                stride=options.stride,
                batch_size=options.batch_size,
                progress=lambda done, total, bar=bar, show=progress: show.update(bar, completed=done, total=total),
            )
    if len(losses) > 1:
        losses["all"] = sum(losses.values(), TextLoss(0, 0, 0, 0.0))
    return losses


def _texts(data: str, fraction: float) -> dict[str, Sequence[str]]:
    if data != STDLIB:
        return {data: list(read_files(SourceSpec(name=data, files=[data]), "--perplexity"))}
    corpus = load_corpus(DataSpec(validation_fraction=fraction))
    return {source.name: list(source.validation) for source in corpus.sources}


def _scores(evaluation: Evaluation, fraction: float) -> dict[str, Any]:
    kinds = {score.task: score.task.removeprefix("stdlib_") for score in evaluation.scores if "stdlib_" in score.task}
    return {
        "tasks": [asdict(score) | {"near_chance": score.near_chance} for score in evaluation.scores],
        "skipped": [asdict(skipped) for skipped in evaluation.skipped],
        "average": evaluation.average(),
        "average_standard_error": evaluation.average_standard_error(),
        "average_above_chance": evaluation.average_above_chance(),
        "items": {task: items_hash(kind, fraction) for task, kind in kinds.items()},
    }
