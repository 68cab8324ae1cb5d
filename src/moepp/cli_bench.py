"""``moepp bench``: argument parsing only, as in :mod:`moepp.cli`."""

from pathlib import Path
from typing import Annotated

import typer

bench = typer.Typer(help="Measure speed against the machine's peak, the vanilla twin and other implementations.")
BENCHMARKS = {
    "experts": "FFN and zero-computation experts at a given routing, without the router.",
    "layer": "The whole MoE layer forward, router included.",
    "router": "The router alone, and its share of the layer together with the zero-computation experts.",
    "decode": "The whole layer forward on a few tokens, as when generating.",
    "train": "The whole layer forward and backward.",
}


def _benchmark(
    context: typer.Context,
    sizes: Annotated[str, typer.Option(help="Of the paper's Table 2: 0.6b, 1b, 2b, 7b; or tiny.")] = "0.6b",
    tokens: Annotated[str | None, typer.Option(help="In one pass.", show_default="2048; decode: 1,2,4,8")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16.")] = "float32",
    tau: Annotated[str, typer.Option(help="In (0, 1]; none for the vanilla layer alone.")] = "0.1,0.25,0.5,0.75,1",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    backends: Annotated[str, typer.Option(help="Our kernels, or all; decode: int8, int4 too.")] = "auto",
    peers: Annotated[str, typer.Option(help="Other implementations, all, or none.")] = "all",
    routing: Annotated[
        str, typer.Option(help="synthetic: tau's exact shares; learned: a trained model's.")
    ] = "synthetic",
    model: Annotated[Path | None, typer.Option(help="A trained model's folder, or the demo's.")] = None,
    rounds: Annotated[int, typer.Option(help="Of measuring, at most.")] = 30,
    seconds: Annotated[float, typer.Option(help="For one table; at least 5 rounds are run.")] = 20.0,
    json: Annotated[Path | None, typer.Option(help="Where the rows go.")] = None,
    paper: Annotated[bool, typer.Option("--paper", help="experts: the paper's Table A; router: its Table B.")] = False,
) -> None:
    from .commands.bench import Options, run_bench

    run_bench(
        Options(
            benchmark=str(context.info_name),
            sizes=sizes,
            tokens=tokens,
            dtype=dtype,
            tau=tau,
            device=device,
            backends=backends,
            peers=peers,
            routing=routing,
            model=model,
            rounds=rounds,
            seconds=seconds,
            json=json,
            paper=paper,
        )
    )


for _name, _help in BENCHMARKS.items():
    bench.command(_name, help=_help)(_benchmark)


@bench.command("model")
def _bench_model(
    sizes: Annotated[str, typer.Option(help="Of the paper's Table 2: 0.6b, 1b, 2b, 7b; or tiny.")] = "0.6b",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 (in training, of autocast).")] = "float32",
    tasks: Annotated[str, typer.Option(help="training, generation.")] = "training,generation",
    models: Annotated[
        str, typer.Option(help="Also transformers:moepp_auto, Mixtral with our kernels.")
    ] = "moepp:auto,vanilla:auto,transformers:grouped_mm",
    routing: Annotated[
        str, typer.Option(help="untrained: what fresh weights choose; synthetic: tau's exact shares.")
    ] = "untrained",
    batch: Annotated[int, typer.Option(help="Samples in a training step.")] = 2,
    sequence: Annotated[int, typer.Option(help="Tokens of a training sample.")] = 512,
    steps: Annotated[int, typer.Option(help="Timed in each process, after its warm-up.")] = 2,
    new_tokens: Annotated[int, typer.Option(help="To generate after each prompt.")] = 16,
    rounds: Annotated[int, typer.Option(help="In each, every model has a process of its own.")] = 2,
    json: Annotated[Path | None, typer.Option(help="Where the rows go.")] = None,
) -> None:
    """Training and generating with whole models on the CPU: speed and peak memory, Mixtral's beside them."""
    from .commands.bench_model import Options, run_bench_model

    run_bench_model(
        Options(
            sizes=sizes,
            dtype=dtype,
            tasks=tasks,
            models=models,
            routing=routing,
            batch=batch,
            sequence=sequence,
            steps=steps,
            new_tokens=new_tokens,
            rounds=rounds,
            json=json,
        )
    )


@bench.command("comm")
def _bench_comm(
    sizes: Annotated[str, typer.Option(help="Of the paper's Table 2: 0.6b, 1b, 2b, 7b; or tiny.")] = "0.6b",
    processes: Annotated[str, typer.Option(help="That share the FFN experts.")] = "2",
    tokens: Annotated[str, typer.Option(help="Of each process, in one step.")] = "256",
    tau: Annotated[str, typer.Option(help="In (0, 1].")] = "0.1,0.25,0.5,0.75,1",
    bandwidth: Annotated[
        str, typer.Option(help="Of links between network namespaces, in Mbit/s, or unlimited; none for no links.")
    ] = "none",
    latency: Annotated[str, typer.Option(help="Added to the links, one way, in milliseconds.")] = "0",
    routing: Annotated[
        str, typer.Option(help="synthetic: tau's exact shares; untrained: what a fresh router chooses.")
    ] = "synthetic",
    rounds: Annotated[int, typer.Option(help="Of measuring, at most.")] = 20,
    seconds: Annotated[float, typer.Option(help="For one table; at least 5 rounds are run.")] = 20.0,
    seed: Annotated[int, typer.Option(help="Of tokens, routing and the order of measuring.")] = 0,
    json: Annotated[Path | None, typer.Option(help="Where the rows go.")] = None,
) -> None:
    """Expert parallelism over processes that it starts: bytes and time of a layer's step, MoE++ and its vanilla twin.

    Links between network namespaces need Linux and the right to make them; without it they are skipped.
    """
    from .commands.bench_comm import Options, run_bench_comm

    run_bench_comm(
        Options(
            sizes=sizes,
            processes=processes,
            tokens=tokens,
            tau=tau,
            bandwidth=bandwidth,
            latency=latency,
            routing=routing,
            rounds=rounds,
            seconds=seconds,
            seed=seed,
            json=json,
        )
    )


@bench.command("loader")
def _bench_loader(
    recipe: Annotated[Path, typer.Argument(help="Whose data, tokenizer and batch size.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, as for moepp train.")] = None,
    ranks: Annotated[str, typer.Option(help="Numbers of processes; the first one's loader is measured.")] = "1",
    seconds: Annotated[float, typer.Option(help="For each number of processes.")] = 10.0,
    training_rate: Annotated[
        float | None, typer.Option(help="Tokens/s that a process trains on; without it, from --peak.")
    ] = None,
    peak: Annotated[float, typer.Option(help="TFLOP/s of one GPU; 312 is an A100's in bfloat16.")] = 312.0,
    utilization: Annotated[float, typer.Option(help="Share of --peak that training reaches.")] = 0.5,
    json: Annotated[Path | None, typer.Option(help="Where the rows go.")] = None,
) -> None:
    """Reading and tokenising alone: tokens/s of a training run's loader, beside what training takes."""
    from .commands.bench_loader import Options, run_bench_loader

    run_bench_loader(
        Options(
            recipe=recipe,
            overrides=overrides or (),
            ranks=ranks,
            seconds=seconds,
            training_rate=training_rate,
            peak=peak,
            utilization=utilization,
            json=json,
        )
    )


@bench.command("report")
def bench_report(
    results: Annotated[Path, typer.Argument(help="The folder with the JSON files.")] = Path("benchmarks/results"),
    out: Annotated[Path, typer.Option(help="The page; plots go to images/ beside it.")] = Path("docs/performance.md"),
) -> None:
    """Write the pages with all results, targets and plots: performance.md, and communication.md beside it."""
    from .commands.bench_report import run_report

    run_report(results, out)
