"""``moepp perplexity``: what storing a trained model's FFN experts in fewer bits does to its loss."""

import json
import math
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers.utils import logging

from ..bench import facts
from ..errors import DataError
from ..evaluate import token_losses
from ..files import save_text
from ..format import binary
from ..layers import MoE
from ..model import MoEPPForCausalLM, load_model, model_folder, quantize_experts
from ..ops.quantized import SCHEMES
from ..train import RECIPE_FILE, Prepared, load_recipe, prepare
from .options import require_writable

FULL = "full"
BATCH = 8
DTYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class Measured:
    """One model on all held-out text."""

    dtype: str
    """Of everything but quantised experts."""
    experts: str
    """``"full"`` or a scheme of :func:`moepp.model.quantize_experts`."""
    loss: float
    """Nats per token over the mixture, as in the training run's log."""
    perplexity: float
    change: float
    """In nats, over the full float32 model."""
    change_standard_error: float
    """From the blocks of held-out text: the two models' losses are compared block by block."""
    expert_bytes: int
    """Of the FFN experts' weights, scales included."""


def run_perplexity(run: Path, out: Path | None) -> None:
    """Prints a table of loss and perplexity, and writes it as JSON to ``out``.

    Raises:
        DataError: ``run`` is not a finished training run with held-out text.
        ConfigError: ``out`` cannot be written.
    """
    if not (run / RECIPE_FILE).is_file():
        raise DataError(f"{run} holds no {RECIPE_FILE}; give the output_dir of a finished training run")
    model_folder(run)
    if out is not None:
        require_writable("--json", out)
    console = Console()
    recipe = load_recipe(run / RECIPE_FILE)
    prepared = prepare(recipe, console, saved_tokenizer=run)
    if not prepared.data.validation:
        raise DataError(f"{run} was trained without held-out text; train one with data.validation_fraction above 0")
    logging.disable_progress_bar()
    with console.status("evaluating"):
        rows = measure(run, prepared)
    console.print(_table(rows))
    if out is not None:
        report = facts() | {
            "seed": recipe.seed,
            "corpus_hash": prepared.data.corpus_hash,
            "tokens": sum(data.blocks.size for data in prepared.data.validation.values()),
            "rows": [asdict(row) for row in rows],
        }
        save_text(out, json.dumps(report, indent=1) + "\n")


def measure(run: Path, prepared: Prepared) -> list[Measured]:
    """Each dtype with full and with quantised experts, on the same held-out text."""
    weights = {
        source.name: source.weight for source in prepared.corpus.sources if source.name in prepared.data.validation
    }
    share = {name: weight / sum(weights.values()) for name, weight in weights.items()}
    exact: dict[str, Tensor] = {}
    rows = []
    for dtype in DTYPES:
        for experts in (FULL, *SCHEMES):
            model = load_model(run, dtype=dtype)
            if experts != FULL:
                quantize_experts(model, experts)
            losses = block_losses(model, prepared)
            exact = exact or losses
            loss = sum(share[name] * float(blocks.mean()) for name, blocks in losses.items())
            differences = {name: blocks - exact[name] for name, blocks in losses.items()}
            variance = sum(share[name] ** 2 * _variance_of_mean(blocks) for name, blocks in differences.items())
            rows.append(
                Measured(
                    dtype=str(dtype).removeprefix("torch."),
                    experts=experts,
                    loss=loss,
                    perplexity=math.exp(loss),
                    change=sum(share[name] * float(blocks.mean()) for name, blocks in differences.items()),
                    change_standard_error=math.sqrt(variance),
                    expert_bytes=_expert_bytes(model),
                )
            )
    return rows


def block_losses(model: MoEPPForCausalLM, prepared: Prepared) -> dict[str, Tensor]:
    """By source, each held-out block's loss in nats per token, without the balance loss."""
    found = {}
    for name, data in prepared.data.validation.items():
        blocks = torch.stack([sample["input_ids"] for sample in data])
        found[name] = torch.cat([_losses(model, batch) for batch in blocks.split(BATCH)]).double()
    return found


def _losses(model: MoEPPForCausalLM, blocks: Tensor) -> Tensor:
    return token_losses(model, blocks[:, :-1], blocks[:, 1:]).mean(-1)


def _variance_of_mean(values: Tensor) -> float:
    return statistics.variance(values.tolist()) / len(values) if len(values) > 1 else math.nan


def _expert_bytes(model: MoEPPForCausalLM) -> int:
    tensors = (
        tensor
        for layer in model.modules()
        if isinstance(layer, MoE)
        for experts in (layer.experts, layer.shared_experts)
        if experts is not None
        for tensor in (*experts.parameters(), *experts.buffers())
    )
    return sum(tensor.nbytes for tensor in tensors)


def _table(rows: list[Measured]) -> Table:
    table = Table(title="held-out text", title_justify="left")
    for name in ("model", "FFN experts"):
        table.add_column(name)
    for name in ("loss", "perplexity", "change of loss", "bytes"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        change = f"{row.change:+.5f} ± {row.change_standard_error:.5f}"
        size = binary(row.expert_bytes)
        table.add_row(row.dtype, row.experts, f"{row.loss:.4f}", f"{row.perplexity:.2f}", change, size)
    return table
