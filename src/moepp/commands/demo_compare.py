"""The numbers behind the demo's tables; every one is measured or computed here, in the run."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..analyze import collect_stats
from ..bench import Throughput, expert_throughput, machine
from ..config import EXPERT_TYPES, ExpertType
from ..layers import RoutingStats
from ..model import account
from ..train import Recipe, TrainResult, read_metrics

BENCH_TOKENS = 2048
BENCH_ROUNDS = 20
PROMPT = "def main(args):\n"


@dataclass(frozen=True)
class ModelResult:
    """One model of the demo."""

    parameters: int
    activated_parameters: int
    expected_activated_parameters: float
    validation: dict[str, float]
    training_tokens_per_second: float
    throughput: dict[str, Throughput]
    """By routing: ``synthetic``, at exactly tau's share, and ``learned``."""
    ffn_share_target: float
    ffn_share: list[float]
    """By layer, on held-out text."""
    ffn_per_token: list[float]
    expert_load: list[list[float]]
    """By layer, each expert's share of the choices."""
    expert_types: list[ExpertType]
    sample: str
    log: list[dict[str, Any]]


@dataclass(frozen=True)
class Comparison:
    """Both models, MoE++ first, and how they came about."""

    models: dict[str, ModelResult]
    facts: dict[str, str]
    tau: float
    beta: float
    top_k: int


def compare(results: Mapping[str, TrainResult], runs: Mapping[str, Path], recipe: Recipe) -> Comparison:
    """Looks at both trained models on the same held-out text."""
    prepared = results["MoE++"].prepared
    batches = _validation_batches(results["MoE++"])
    sample = _in_turns(batches, BENCH_TOKENS)
    trained = {name: result.model for name, result in results.items()}
    throughput = expert_throughput(trained, sample, baseline="vanilla", rounds=BENCH_ROUNDS)
    models = {}
    for name, result in results.items():
        config = result.model.config
        layout = config.moe.layout()
        counts = account(config)
        stats = collect_stats(result.model, ({"input_ids": batch} for batch in batches))
        log = read_metrics(runs[name])
        speeds = [entry["tokens_per_second"] for entry in log if entry.get("tokens_per_second")]
        models[name] = ModelResult(
            parameters=counts.total_parameters,
            activated_parameters=counts.activated_parameters,
            expected_activated_parameters=counts.expected_activated_parameters,
            validation=result.metrics,
            training_tokens_per_second=statistics.median(speeds),
            throughput=throughput[name],
            ffn_share_target=config.moe.ffn_share(),
            ffn_share=[layer.shares(layout)["ffn"] for layer in stats],
            ffn_per_token=[layer.ffn_per_token(layout) for layer in stats],
            expert_load=[_load(layer) for layer in stats],
            expert_types=[kind for kind in EXPERT_TYPES for _ in layout.indices(kind)],
            sample=_continue(result, PROMPT),
            log=log,
        )
    config, here = results["MoE++"].model.config, machine()
    tokens = max(entry["step"] for entry in models["MoE++"].log) * recipe.samples_per_step * recipe.data.sequence_length
    facts = {
        "seed": f"{recipe.seed}, one run of each model",
        "training": f"{tokens:,} tokens in {recipe.training['max_steps']} steps, the same for both",
        "corpus": f"the standard library of Python {here['python']}, hash {prepared.data.corpus_hash[:16]}"
        if all(source.python_library for source in recipe.data.sources)
        else f"{', '.join(prepared.data.validation)}, hash {prepared.data.corpus_hash[:16]}",
        "expert throughput": f"forward, {sample.numel()} tokens, all layers, {config.dtype}, median of {BENCH_ROUNDS} "
        "interleaved rounds",
        "machine": f"{here['processor']}, {here['cores']} threads" + (f", {g}" if (g := here["gpu"]) else ""),
        "versions": f"moepp {__version__}, torch {torch.__version__}, transformers {version('transformers')}",
    }
    return Comparison(models, facts, config.tau, config.router_aux_loss_coef, config.top_k)


def _validation_batches(result: TrainResult, blocks: int = 8) -> list[torch.Tensor]:
    """A few blocks of each source, one batch a source."""
    device = result.model.device
    batches = []
    for data in result.prepared.data.validation.values():
        count = min(blocks, len(data))
        batches.append(
            torch.stack([data[index * len(data) // count]["input_ids"] for index in range(count)]).to(device)
        )
    return batches


def _in_turns(batches: Sequence[torch.Tensor], tokens: int) -> torch.Tensor:
    """About so many tokens, a block of each source in turn: no source stands for all."""
    blocks = [block for group in zip(*batches, strict=False) for block in group]
    return torch.stack(blocks[: max(1, tokens // blocks[0].numel())])


def _load(stats: RoutingStats) -> list[float]:
    return (stats.assigned / stats.assigned.sum()).tolist()


def _continue(result: TrainResult, prompt: str) -> str:
    tokenizer, model = result.prepared.tokenizer, result.model.eval()
    torch.manual_seed(0)
    inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
    out: Any = model.generate(**inputs, max_new_tokens=60, do_sample=True, temperature=0.7)  # pyright: ignore[reportAttributeAccessIssue]
    return str(tokenizer.decode(out[0], skip_special_tokens=True))
