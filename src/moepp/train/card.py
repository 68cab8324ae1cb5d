"""A trained model's card, ``README.md``: what it is, what it saw and how it did, as Hugging Face's hub reads it.

Everything comes from the run; what the run doesn't know is left out or said to be unknown.
"""

import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .. import __version__
from ..config import EXPERT_TYPES
from ..data import Data, DataSpec, SourceSpec
from ..format import large
from ..model import MoEPPConfig, account
from .recipe import Recipe

CARD_FILE = "README.md"
_TAGS = ["moepp", "moe", "mixture-of-experts", "zero-computation-experts", "arxiv:2410.07348"]
# What the datasets library calls its readers of files; the names of data sets on the hub are others.
_BUILDERS = ("json", "parquet", "text", "csv", "arrow", "xml", "webdataset")
_METRICS = {"loss": "loss, nats per token", "bits_per_byte": "bits per byte"}


def write_card(
    path: Path,
    *,
    recipe: Recipe,
    config: MoEPPConfig,
    data: Data,
    metrics: Mapping[str, float],
    log: Sequence[Mapping[str, Any]],
) -> None:
    """Writes a finished run's card.

    Args:
        data: what was trained on.
        metrics: the last validation's, under the names of the run's log; may be empty.
        log: the run's logged entries.
    """
    name = Path(recipe.output_dir).resolve().name
    header = ModelCardData(
        license=recipe.license,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=_TAGS,
        datasets=_hub_datasets(recipe.data) or None,
        model_name=name,
        eval_results=_results(metrics) or None,
    )
    body = [
        f"# {name}",
        f"{_described(recipe, config)}, trained with moepp {__version__}. "
        "The method is [MoE++](https://arxiv.org/abs/2410.07348).",
        *("## Use", _usage(name)),
        *("## Model", _table(_model(recipe, config))),
        *("## Data", _data(data, recipe.data)),
        *("## Results", _scores(metrics, log)),
        *("## Training", _table(_training(recipe))),
        *("## Licence", recipe.license or "Not stated in the recipe of this run."),
    ]
    ModelCard(f"---\n{header.to_yaml()}\n---\n\n" + "\n\n".join(body) + "\n", ignore_metadata_errors=True).save(path)


def _described(recipe: Recipe, config: MoEPPConfig) -> str:
    counts = account(config)
    kind = "A mixture-of-experts language model with zero-computation experts"
    if not config.moe.layout().num_zero_computation:
        kind = "A vanilla mixture-of-experts language model, the twin of a MoE++"
    size = f"{large(counts.total_parameters)} parameters, of which a token activates {_activated(config)}"
    preset = recipe.model.get("preset")
    return f"{kind} ({size}" + (f"; preset `{preset}`)" if preset else ")")


def _activated(config: MoEPPConfig) -> str:
    counts = account(config)
    return f"{large(round(counts.expected_activated_parameters))} at the balance of τ = {config.tau:g}"


def _usage(folder: str) -> str:
    return (
        "```python\n"
        "import moepp.model  # registers the model type\n"
        "from transformers import pipeline\n"
        f'print(pipeline("text-generation", model={folder!r})("Once")[0]["generated_text"])\n'
        "```"
    )


def _model(recipe: Recipe, config: MoEPPConfig) -> Iterable[tuple[str, object]]:
    layout = config.moe.layout()
    yield "preset", recipe.model.get("preset", "none")
    yield "layers × hidden size", f"{config.num_hidden_layers} × {config.hidden_size}"
    yield "attention heads", f"{config.num_attention_heads}, {config.num_key_value_heads} for keys and values"
    yield "experts per layer", ", ".join(f"{layout.count(k)} {k}" for k in EXPERT_TYPES if layout.count(k))
    if config.num_shared_experts:
        yield "shared experts per layer", f"{config.num_shared_experts}, which every token goes through"
    yield "FFN experts' width", config.intermediate_size
    yield "experts per token", config.top_k
    yield "τ, β", f"{config.tau:g}, {config.router_aux_loss_coef:g}"
    yield "vocabulary, context", f"{config.vocab_size}, {config.max_position_embeddings}"


def _data(data: Data, spec: DataSpec) -> str:
    columns = ("source", "split", "weight", "documents", "tokens", "epochs")
    lines = [" | ".join(columns), "|".join("---" for _ in columns)]
    lines += [" | ".join(_cell(row.get(name)) for name in columns) for row in data.rows]
    table = "\n".join(f"| {line} |" for line in lines)
    origins = "\n".join(f"- {source.name}: {_origin(source)}" for source in spec.sources)
    return f"{table}\n\n{origins}\n\nCorpus hash (sha256): `{data.corpus_hash}`"


def _origin(source: SourceSpec) -> str:
    if source.python_library:
        return f"{source.python_library} of Python {platform.python_version()}'s standard library"
    if source.dataset and source.dataset not in _BUILDERS:
        subset = f", {source.subset}" if source.subset else ""
        return f"data set {source.dataset}{subset}, split {source.split}"
    return "files"


def _scores(metrics: Mapping[str, float], log: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        (f"held-out {name.removeprefix('eval_')}".replace("_", " "), f"{value:.4f}")
        for name, value in metrics.items()
        if name.endswith(tuple(_METRICS))
    ]
    ffn = next((entry["ffn_per_token"] for entry in reversed(log) if "ffn_per_token" in entry), None)
    if ffn is not None:
        lines.append(("routed FFN experts per token, in the last steps logged", f"{ffn:.2f}"))
    return _table(lines) if lines else "Nothing was held out to validate on."


def _training(recipe: Recipe) -> Iterable[tuple[str, object]]:
    steps, o = recipe.training["max_steps"], recipe.optimization
    precision = next((name for name in ("bf16", "fp16") if recipe.training.get(name)), "float32")
    yield "steps", steps
    yield "tokens", f"{steps * recipe.samples_per_step * recipe.data.sequence_length:,}"
    yield "tokens per step", f"{recipe.samples_per_step} × {recipe.data.sequence_length}"
    yield "learning rate", f"{o.learning_rate:g} to {o.final_learning_rate:g}, after {o.warmup_steps} steps of warm-up"
    yield (
        "AdamW",
        f"β {o.beta1:g} and {o.beta2:g}, weight decay {o.weight_decay:g}, gradients clipped at {o.max_grad_norm:g}",
    )
    yield "precision", precision
    yield "seed", f"{recipe.seed}, one run"
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "tokenizers"))
    yield "versions", f"moepp {__version__}, {libraries}, Python {platform.python_version()}"


def _results(metrics: Mapping[str, float]) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type="held-out",
            dataset_name="held-out part of the training sources",
            metric_type=name,
            metric_name=title,
            metric_value=metrics[f"eval_{name}"],
        )
        for name, title in _METRICS.items()
        if f"eval_{name}" in metrics
    ]


def _hub_datasets(spec: DataSpec) -> list[str]:
    """The sources that are on the hub, as far as their names tell."""
    names = (source.dataset for source in spec.sources)
    return sorted({name for name in names if name and name not in _BUILDERS and not Path(name).exists()})


def _table(rows: Iterable[tuple[str, object]]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {_cell(name)} | {_cell(value)} |" for name, value in rows)])


def _cell(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value).replace("|", "\\|").replace("\n", " ")
