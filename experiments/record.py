"""What a finished run leaves for the experiments: its numbers, beside its model."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from moepp.analyze import collect_stats
from moepp.errors import DataError
from moepp.files import replacing
from moepp.layers import RoutingStats
from moepp.train import TrainResult, read_metrics, validation_sources

from .provenance import provenance
from .runs import Run

RECORD_FILE = "record.json"
_BLOCKS = 32
"""Of each source's held-out text, for the routing of the trained model."""


@dataclass(frozen=True)
class Record:
    """One run's numbers. A diverged run has ``failure`` and nothing else."""

    variant: str
    seed: int
    length: float
    key: str
    corpus: str
    facts: dict[str, Any]
    """Machine, versions and command."""
    failure: str | None = None
    steps: int = 0
    tokens: int = 0
    parameters: int = 0
    loss: float = 0.0
    """Nats per token of held-out text, over the recipe's mixture."""
    source_loss: dict[str, float] = dataclasses.field(default_factory=dict)
    bits_per_byte: dict[str, float] = dataclasses.field(default_factory=dict)
    """By source; ``all`` over the mixture."""
    expert_flops: float = 0.0
    """Of the FFN experts in training, routed and shared, forward and backward (twice the forward's)."""
    ffn_share_target: float = 0.0
    """The share of choices for FFN experts that tau's balance implies (Table 1)."""
    ffn_share: list[float] = dataclasses.field(default_factory=list)
    """By layer, on held-out text."""
    ffn_per_token: float = 0.0
    """Routed FFN experts per token on held-out text, averaged over layers."""
    load: list[list[float]] = dataclasses.field(default_factory=list)
    """By layer, each expert's share of the choices on held-out text."""
    dropped: float = 0.0
    """Share of the FFN experts' assignments that capacity dropped over training."""
    curve: list[dict[str, float]] = dataclasses.field(default_factory=list)
    """By logging step: ``step``, ``lm_loss``, ``ffn_per_token``, ``load_imbalance``."""
    seconds: float = 0.0
    """Of training steps, beside whatever else the machine did: to plan by, not to compare."""

    def write(self, folder: Path) -> None:
        """Writes the folder's record, whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)  # a run may fail before it writes anything
        with replacing(folder / RECORD_FILE) as aside:
            aside.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Record":
        """The record of a finished run.

        Raises:
            DataError: it is damaged.
        """
        path = folder / RECORD_FILE
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise DataError(f"{path} is damaged: {error}; remove the folder, its run is then trained again") from error


def failed(run: Run, key: str, corpus: str, reason: str) -> Record:
    """The record of a run that diverged."""
    return Record(run.variant.name, run.seed, run.variant.length, key, corpus, provenance(), failure=reason)


def record(run: Run, key: str, result: TrainResult, folder: Path) -> Record:
    """The record of a run that ended well."""
    recipe, config, metrics = run.recipe(), result.model.config, result.metrics
    log = [entry for entry in read_metrics(folder) if "lm_loss" in entry]
    steps = recipe.training["max_steps"]
    tokens_per_step = run.tokens // steps
    layout = config.moe.layout()
    stats = _held_out_routing(result)
    forward_flops = 2 * 3 * config.hidden_size * config.intermediate_size * config.num_hidden_layers
    routed = sum(_by_step(log, "ffn_per_token", steps))
    sources = validation_sources(metrics)
    return Record(
        variant=run.variant.name,
        seed=run.seed,
        length=run.variant.length,
        key=key,
        corpus=result.prepared.corpus.hash,
        facts=provenance(),
        steps=steps,
        tokens=run.tokens,
        parameters=result.model.num_parameters(),
        loss=metrics["eval_loss"],
        source_loss={source: metrics[f"eval_{source}_loss"] for source in sources},
        bits_per_byte={source: metrics[f"eval_{source}_bits_per_byte"] for source in sources}
        | {"all": metrics["eval_bits_per_byte"]},
        expert_flops=3 * forward_flops * tokens_per_step * (routed + steps * config.num_shared_experts),
        ffn_share_target=config.moe.ffn_share(),
        ffn_share=[layer.shares(layout)["ffn"] for layer in stats],
        ffn_per_token=sum(layer.ffn_per_token(layout) for layer in stats) / len(stats),
        load=[(layer.assigned / layer.assigned.sum()).tolist() for layer in stats],
        dropped=sum(_by_step(log, "dropped/ffn", steps)) / steps,
        curve=[{k: entry[k] for k in ("step", "lm_loss", "ffn_per_token", "load_imbalance")} for entry in log],
        seconds=sum(tokens_per_step / pace for pace in _by_step(log, "tokens_per_second", steps)),
    )


def _by_step(log: Sequence[dict[str, Any]], name: str, steps: int) -> list[float]:
    """Of each step the mean of its logging window; steps after the last window are like it."""
    values: list[float] = []
    for entry in log:
        values += [entry[name]] * (entry["step"] - len(values))
    return values + [values[-1]] * (steps - len(values))


def _held_out_routing(result: TrainResult) -> list[RoutingStats]:
    batches = []
    for data in result.prepared.data.validation.values():
        count = min(_BLOCKS, len(data))
        blocks = [data[index * len(data) // count]["input_ids"] for index in range(count)]
        batches += torch.stack(blocks).to(result.model.device).split(8)
    return collect_stats(result.model, ({"input_ids": batch} for batch in batches))
