"""``moepp``: argument parsing only. Every command imports and calls one function.

A user's mistake is one line on standard error and exit code 2; ``--debug`` shows where it was raised.
"""

import logging
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from .cli_bench import bench
from .errors import ConfigError, MoEPPError

app = typer.Typer(
    name="moepp",
    help="Mixture-of-Experts language models with zero-computation experts.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(bench, name="bench", no_args_is_help=True)
_state = {"debug": False}


@app.callback()
def _options(debug: Annotated[bool, typer.Option(help="Show the traceback of an error.")] = False) -> None:
    _state["debug"] = debug


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where the models and the report go.")] = Path("runs/demo"),
    recipe: Annotated[
        Path | None, typer.Option(help="The MoE++ model's recipe.", show_default="the demo's own")
    ] = None,
    override: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="e.g. model.tau=0.5")] = None,
) -> None:
    """Train a small MoE++ and its vanilla twin on this Python's library, compare them, write a report."""
    from .commands.demo import run_demo

    run_demo(out, recipe, override or [])


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="A YAML file; see recipes/.")],
    override: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="e.g. model.tau=0.5")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the run's newest checkpoint.")] = False,
    resume_from: Annotated[Path | None, typer.Option(help="Continue from this checkpoint.")] = None,
) -> None:
    """Train a model from a recipe."""
    from .commands.train import run_train

    if resume and resume_from:
        raise ConfigError("--resume and --resume-from say two things; give one")
    run_train(recipe, override or [], resume_from or resume)


@app.command()
def info(
    preset: Annotated[str, typer.Argument(help="A preset's name, or a saved model's folder.")],
    override: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="e.g. tau=0.5")] = None,
    context: Annotated[int | None, typer.Option(help="Sequence length for attention's FLOPs and the KV cache.")] = None,
    bytes_per_weight: Annotated[int, typer.Option(help="2 for bf16, 4 for float32.")] = 2,
) -> None:
    """Parameters, FLOPs and memory of a model, from its configuration alone."""
    from .commands.info import run_info

    run_info(preset, override or [], context=context, bytes_per_weight=bytes_per_weight)


@app.command()
def perplexity(
    run: Annotated[
        Path, typer.Argument(help="The output_dir of a finished training run; the demo's: runs/demo/moepp.")
    ],
    json: Annotated[Path | None, typer.Option(help="Where the numbers go.")] = None,
) -> None:
    """Loss and perplexity of a trained model in float32 and bfloat16, with its FFN experts in full, 8 and 4 bits."""
    from .commands.perplexity import run_perplexity

    run_perplexity(run, json)


@app.command(name="eval")
def evaluate(
    model: Annotated[Path, typer.Argument(help="A saved model's folder; the demo's: runs/demo/moepp.")],
    tasks: Annotated[
        str, typer.Option(help="paper, stdlib, or names of the harness's tasks, separated by commas.")
    ] = "",
    limit: Annotated[int | None, typer.Option(help="Items per task.", show_default="all")] = None,
    perplexity: Annotated[
        str | None, typer.Option(metavar="DATA", help="Text, JSONL or Parquet files (a pattern), or stdlib.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Where the numbers go.")] = None,
    include_path: Annotated[list[Path] | None, typer.Option(help="A folder with tasks of your own.")] = None,
    batch_size: Annotated[int, typer.Option(help="Sequences at a time.")] = 16,
    device: Annotated[str, typer.Option(help="cpu, cuda, … or auto.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, … or auto: as saved.")] = "auto",
    window: Annotated[int | None, typer.Option(help="Tokens seen at once.", show_default="the context")] = None,
    stride: Annotated[int | None, typer.Option(help="Tokens between windows.", show_default="half a window")] = None,
) -> None:
    """Score a model on tasks, with lm-evaluation-harness, and on text."""
    from .commands.eval import EvalOptions, run_eval

    names = [name.strip() for name in tasks.split(",") if name.strip()]
    given = (perplexity, limit, json, include_path or [], batch_size, device, dtype, window, stride)
    run_eval(model, EvalOptions(names, *given))


class _StderrHandler(logging.Handler):
    """Writes to what ``sys.stderr`` is at the time: while a progress bar is shown, rich's, which prints above it."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(f"{record.levelname.lower()}: {record.getMessage()}\n")


def main() -> None:
    """The console entry point."""
    console = Console(stderr=True)
    logging.basicConfig(level=logging.WARNING, handlers=[_StderrHandler()])
    # transformers imports these wherever they are installed; what they cannot load concerns only those who use them.
    for library in ("torchao", "bitsandbytes"):
        logging.getLogger(library).setLevel(logging.ERROR)
    try:
        app(standalone_mode=True)
    except MoEPPError as error:
        if _state["debug"]:
            traceback.print_exc()
        console.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        sys.exit(2)
