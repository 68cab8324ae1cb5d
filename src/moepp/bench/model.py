"""The whole model: what training and generating with MoE++, its vanilla twin and transformers' Mixtral cost.

Each measurement is a process of its own, in rounds, in an order drawn anew each round: three models with their
optimizers do not fit into one machine, and a process's peak memory is one model's.
"""

import dataclasses
import json
import random
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from .rows import Row
from .sizes import model_config

Task = Literal["training", "generation"]
Route = Literal["untrained", "synthetic"]
MODELS = ("moepp:auto", "vanilla:auto", "transformers:grouped_mm", "transformers:moepp_auto")
"""The last two are Mixtral with its own experts, and with our kernels in their place."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to measure."""

    task: Task
    variant: str
    """Whose model, and the experts' implementation: ``moepp:auto``, ``vanilla:auto``, ``transformers:grouped_mm``."""
    size: str
    dtype: str
    """Of the weights; in training, of autocast over float32 weights."""
    batch: int
    sequence: int
    """Tokens of a training sample, or of a prompt."""
    new_tokens: int
    steps: int
    """To be timed: training steps, or generations of all new tokens."""
    routing: Route
    """Of our models; Mixtral's router always chooses itself."""
    threads: int
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What was measured."""

    seconds: list[float]
    """Of each step."""
    peak_memory_bytes: int
    """Of the process, libraries and building the model included."""
    parameters: int
    ffn_per_token: float
    """FFN experts that a token goes through, the mean over layers, after the steps."""


def run_models(jobs: Sequence[Job], *, rounds: int, say: Callable[[str], None] = lambda what: None) -> list[Row]:
    """Runs jobs that differ in their variant only, each once a round; one row for each.

    Args:
        say: is told what runs next.
    """
    order = list(jobs)
    generator = random.Random(0)
    outcomes: dict[str, list[Outcome]] = {job.variant: [] for job in jobs}
    reasons: dict[str, str] = {}
    for number in range(rounds):
        generator.shuffle(order)
        for job in order:
            if job.variant not in reasons:
                say(f"round {number + 1} of {rounds}, {job.variant}")
                outcome = run_job(job)
                if isinstance(outcome, str):
                    reasons[job.variant] = outcome
                else:
                    outcomes[job.variant].append(outcome)
    done = {variant: found for variant, found in outcomes.items() if variant not in reasons}
    medians = {v: statistics.median(s for one in found for s in one.seconds) for v, found in done.items()}
    return [_row(job, done.get(job.variant, []), medians, reasons.get(job.variant)) for job in jobs]


def run_job(job: Job) -> Outcome | str:
    """The outcome of a job in a process of its own, or why there is none."""
    command = [sys.executable, "-m", f"{__package__}.model_job", json.dumps(asdict(job))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode < 0:
        return f"its process was ended by {signal.Signals(-done.returncode).name}, as when memory runs out"
    if done.returncode > 0:
        return (done.stderr.strip().splitlines() or [f"its process ended with {done.returncode}"])[-1]
    return Outcome(**json.loads(done.stdout.splitlines()[-1]))


def _row(job: Job, outcomes: Sequence[Outcome], medians: dict[str, float], reason: str | None) -> Row:
    ours = not job.variant.startswith("transformers:")
    tokens = job.batch * (job.sequence if job.task == "training" else job.new_tokens)
    median = medians.get(job.variant)
    row = Row(
        benchmark="model",
        variant=job.variant,
        pass_=job.task,
        size=job.size,
        dtype=job.dtype,
        device="cpu",
        threads=job.threads,
        batch=job.batch,
        tokens=tokens,
        tau=model_config(job.size).tau if job.variant.startswith("moepp:") else None,
        routing=job.routing if ours else None,
        reason=reason,
    )
    if median is None:
        return row
    quartiles = statistics.quantiles([s for one in outcomes for s in one.seconds], n=4)
    return dataclasses.replace(
        row,
        median_s=median,
        iqr_s=quartiles[2] - quartiles[0],
        tokens_per_s=tokens / median,
        speedup_over={other: value / median for other, value in medians.items() if other != job.variant},
        peak_memory_bytes=max(one.peak_memory_bytes for one in outcomes),
        ffn_per_token=statistics.mean(one.ffn_per_token for one in outcomes),
    )
