"""``python -m moepp.commands.gpu_check``: a short training run on a CUDA GPU, with what it ran on and how fast.

Needs nothing beyond torch, transformers, accelerate, typer and rich, so it runs where nothing can be installed.
"""

import statistics
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from rich.console import Console

from ..bench import machine
from ..data import DataSpec
from ..errors import BackendUnavailable, MoEPPError
from ..train import Optimization, Recipe, read_metrics, train

STEPS = 60


def run_gpu_check(console: Console) -> None:
    """Trains a 12-layer MoE++ in bf16 and prints device, versions, tokens per second and the loss.

    Raises:
        BackendUnavailable: there is no CUDA GPU.
    """
    if not torch.cuda.is_available():
        raise BackendUnavailable("make gpu needs a CUDA GPU and torch sees none; run it on a machine that has one")
    facts = machine()
    console.print(f"{facts['gpu']}, python {facts['python']}, torch {facts['torch']}, {transformers.__version__=}")
    with tempfile.TemporaryDirectory() as folder:
        result = train(_recipe(Path(folder, "run")), console=console)
        log = read_metrics(Path(folder, "run"))
    speeds = [entry["tokens_per_second"] for entry in log if "tokens_per_second" in entry]
    memory = torch.cuda.max_memory_allocated() / 2**30
    console.print(
        f"{statistics.median(speeds[1:]):,.0f} tokens/s (median of {len(speeds) - 1} windows), "
        f"{memory:.1f} GiB, validation loss {result.metrics['eval_loss']:.3f}"
    )


def _recipe(output_dir: Path) -> Recipe:
    return Recipe(
        output_dir=str(output_dir),
        model={
            "hidden_size": 768,
            "intermediate_size": 2048,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "num_ffn_experts": 8,
            "capacity_factor": None,
        },
        data=DataSpec(sequence_length=1024, max_validation_tokens=65536),
        optimization=Optimization(warmup_steps=20),
        training={
            "max_steps": STEPS,
            "per_device_train_batch_size": 16,
            "logging_steps": 10,
            "save_strategy": "no",
            "bf16": True,
        },
    )


if __name__ == "__main__":
    try:
        run_gpu_check(Console())
    except MoEPPError as error:
        sys.exit(f"error: {error}")
