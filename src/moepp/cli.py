"""``moepp``: argument parsing only. Every command imports and calls one function.

A user's mistake is one line on standard error and exit code 2; ``--debug`` shows where it was raised.
"""

import logging
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from .cli_bench import bench
from .errors import ConfigError, MoEPPError
from .logs import quiet_libraries

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
def plan(
    recipe: Annotated[Path, typer.Argument(help="A YAML file; see recipes/paper/.")],
    override: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="e.g. model.tau=0.5")] = None,
    gpus: Annotated[int | None, typer.Option(help="One process each.", show_default="the recipe's")] = None,
    gpu_memory: Annotated[str, typer.Option(help="Of one GPU.")] = "80G",
    gpus_per_node: Annotated[int, typer.Option(help="What the fast links connect.")] = 8,
    peak: Annotated[str, typer.Option(help="FLOPs per second of one GPU, in the dtype of the products.")] = "312TF",
    utilisation: Annotated[float, typer.Option(help="The share of the peak that computing reaches.")] = 0.4,
    bandwidth: Annotated[str, typer.Option(help="Between nodes, for one GPU, one way.")] = "25GB/s",
    node_bandwidth: Annotated[str, typer.Option(help="Within a node, for one GPU, one way.")] = "300GB/s",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Build the model as rank 0 would, without memory, and compare.")
    ] = False,
) -> None:
    """Memory, traffic and time of a training run at all parallel sizes; the machine's defaults are A100s."""
    from .commands.plan import run_plan
    from .commands.plan_options import PlanOptions

    options = PlanOptions(gpus, gpu_memory, gpus_per_node, peak, utilisation, bandwidth, node_bandwidth)
    run_plan(recipe, override or [], options, dry_run=dry_run)


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

    options = EvalOptions(
        tasks=[name.strip() for name in tasks.split(",") if name.strip()],
        perplexity=perplexity,
        limit=limit,
        json=json,
        include_path=include_path or [],
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        window=window,
        stride=stride,
    )
    run_eval(model, options)


@app.command()
def analyze(
    models: Annotated[list[Path], typer.Argument(metavar="MODEL", help="Saved models' folders.")],
    text: Annotated[Path | None, typer.Option(help="A file of text.", show_default="stdlib's held-out part")] = None,
    data: Annotated[
        list[str] | None, typer.Option(metavar="DATA", help="Text, JSONL or Parquet files (a pattern), or stdlib.")
    ] = None,
    table: Annotated[
        list[Path] | None, typer.Option(help="A saved table instead of a run, one for each model, in their order.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="In equal parts from each source.", show_default="50000")
    ] = None,
    window: Annotated[int | None, typer.Option(help="Tokens seen at once.", show_default="the context")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Windows at a time.", show_default="8")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, … or auto.", show_default="auto")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, … or auto.", show_default="as saved")] = None,
    out: Annotated[Path, typer.Option(help="A folder for tables, numbers and the page.")] = Path("runs/analysis"),
) -> None:
    """Show what the experts of one model or several do on text."""
    from .commands.analyze import AnalyzeOptions, run_analyze

    options = {"text": text, "data": data or [], "tables": table or [], "max_tokens": max_tokens, "window": window}
    run_analyze(models, AnalyzeOptions(**options, batch_size=batch_size, device=device, dtype=dtype, out=out))


@app.command()
def convert(
    source: Annotated[
        Path,
        typer.Argument(metavar="SRC", help="A folder: the published model, one of ours, or a run's checkpoint."),
    ],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="A new folder.")],
    to: Annotated[
        str | None, typer.Option(help="moepp or released.", show_default="the format that SRC is not in")
    ] = None,
) -> None:
    """Convert the published checkpoint to moepp's format or back, or a run's checkpoint to a model."""
    from .commands.convert import run_convert

    run_convert(source, destination, to)


@app.command()
def generate(
    model: Annotated[Path, typer.Argument(help="A saved model's folder, e.g. runs/demo/moepp.")],
    prompt: Annotated[str | None, typer.Argument(help="The text to go on with.", show_default="--stdin")] = None,
    stdin: Annotated[bool, typer.Option("--stdin", help="All of standard input is the prompt.")] = False,
    chat: Annotated[bool, typer.Option("--chat", help="As a user's message, in the chat template.")] = False,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="At most.", show_default="128, or what the context has room for")
    ] = None,
    do_sample: Annotated[
        bool | None, typer.Option(help="Draw tokens; else the most likely.", show_default="the model's own")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Above 1 evens probabilities out.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Draw from so many tokens; no matter of experts.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw from the likeliest that make up this share.")] = None,
    min_p: Annotated[float | None, typer.Option(help="Draw from those this likely beside the likeliest.")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="Above 1 avoids what was said.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same draws every time.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16; auto is as saved.")] = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda; auto is the accelerator, if any.")] = "auto",
    pack: Annotated[bool, typer.Option("--pack", help="CPU: keep experts as the kernels read them, only.")] = False,
) -> None:
    """Continue a text, printed as it is generated."""
    from .commands.generate import Sampling, run_generate

    sampling = Sampling(
        max_new_tokens=max_new_tokens,
        do_sample=do_sample,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    run_generate(model, prompt, sampling, stdin=stdin, chat=chat, dtype=dtype, device=device, pack=pack)


@app.command()
def serve(
    model: Annotated[Path, typer.Argument(help="A saved model's folder, e.g. runs/demo/moepp.")],
    name: Annotated[str | None, typer.Option(help="What requests call it.", show_default="the folder's name")] = None,
    host: Annotated[str, typer.Option(help="An address of this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8000,
    public: Annotated[bool, typer.Option("--public", help="Allow a --host that other machines can reach.")] = False,
    drain: Annotated[int, typer.Option(help="Seconds that running answers get after a signal to stop.")] = 60,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16; auto is as saved.")] = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda; auto is the accelerator, if any.")] = "auto",
    pack: Annotated[bool, typer.Option("--pack", help="CPU: keep experts as the kernels read them, only.")] = False,
) -> None:
    """Answer OpenAI's clients over HTTP."""
    from .commands.serve import run_serve

    options = {"name": name, "host": host, "port": port, "public": public, "drain": drain}
    run_serve(model, **options, dtype=dtype, device=device, pack=pack)


class _StderrHandler(logging.Handler):
    """Writes to what ``sys.stderr`` is at the time: while a progress bar is shown, rich's, which prints above it."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(f"{record.levelname.lower()}: {record.getMessage()}\n")


def main() -> None:
    """The console entry point."""
    console = Console(stderr=True)
    rank = _rank()
    logging.basicConfig(level=logging.ERROR if rank else logging.WARNING, handlers=[_StderrHandler()])
    quiet_libraries()
    try:
        app(standalone_mode=True)
    except MoEPPError as error:
        if _state["debug"]:
            traceback.print_exc()
        if error.said_by in (rank or 0, None):
            who = f"rank {rank}: " if rank is not None and error.said_by != 0 else ""
            console.print(f"[bold red]error:[/] {who}{escape(str(error))}", soft_wrap=True, highlight=False)
        sys.exit(2)


def _rank() -> int | None:
    """Which of a launcher's processes this is; None for one that was started by itself."""
    rank = os.environ.get("RANK", "")
    return int(rank) if rank.isdecimal() and os.environ.get("WORLD_SIZE") != "1" else None
