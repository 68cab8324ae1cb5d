"""``moepp eval``: a trained model's scores on tasks, and its loss on text."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from transformers.utils import logging

from ..bench import facts
from ..errors import ConfigError, DataError
from ..evaluate import SEEDS, Evaluation, TextLoss, evaluate_tasks, items_hash, text_loss
from ..files import readable, save_text
from ..model import MoEPPForCausalLM
from .eval_report import print_scores, print_skipped, print_text_losses
from .generate import open_saved
from .options import require_at_least_one, require_writable
from .texts import held_out_fraction, read_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
    console = Console(markup=False, emoji=False)  # names and paths are shown as they are
    logging.disable_progress_bar()
    model, tokenizer = open_saved(path, dtype=options.dtype, device=options.device)
    kind = {"dtype": str(model.dtype).removeprefix("torch."), "device": str(model.device)}
    report = {"model": str(path)} | kind | facts() | {"seed": SEEDS}
    if options.perplexity is not None:
        losses = _text_losses(model, tokenizer, options, path, console)
        print_text_losses(losses, console)
        report["perplexity"] = {
            name: asdict(loss) | {k: getattr(loss, k) for k in ("loss", "perplexity", "bits_per_byte")}
            for name, loss in losses.items()
        }
    evaluation = Evaluation([], [])
    if options.tasks:
        fraction = held_out_fraction([path])
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
        save_text(options.json, json.dumps(report, indent=1) + "\n")
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


def _text_losses(
    model: MoEPPForCausalLM,
    tokenizer: "PreTrainedTokenizerBase",
    options: EvalOptions,
    path: Path,
    console: Console,
) -> dict[str, TextLoss]:
    """By source; with more than one, their sum too."""
    with console.status("reading the text"):
        texts = read_texts(str(options.perplexity), "--perplexity", [path])
    losses = {}
    for name, documents in ((readable(name), some) for name, some in texts.items()):
        with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
            bar = progress.add_task(escape(name))
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
