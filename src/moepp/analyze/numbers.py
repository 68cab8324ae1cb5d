"""The most telling numbers of a summary in words, for the terminal and the page."""

import math
from collections.abc import Mapping

import numpy as np

from ..config import EXPERT_TYPES
from .summary import Summary


def numbers(summary: Summary) -> dict[str, str]:
    """What a number is, with its unit, and the number; an indented one belongs to the one above."""
    table, by_source = summary.sample, summary.per_token_by_source["ffn"]
    return {
        "tokens": f"{summary.num_tokens:,}",
        "  seen at once": f"{table.facts.window:,}",
        "loss, nats per token": number(summary.loss),
        "FFN experts per token": number(summary.ffn),
        "  aimed at": number(summary.aim),
        **{
            f"  {source}": number(mean)
            for source, mean in zip(by_source.groups, by_source.mean.tolist(), strict=True)
            if len(by_source.groups) > 1
        },
        **{
            f"{kind} experts per token": number(summary.per_token[kind].mean[0])
            for kind in EXPERT_TYPES[1:]
            if table.layout.count(kind)
        },
        "busiest FFN expert, × mean": number(summary.imbalance.ffn_max.mean()),
        "  coefficient of variation": number(summary.imbalance.ffn_variation.mean()),
        "busiest expert, × its aim": number(summary.imbalance.all_max.mean()),
        "router entropy, of log E": number(summary.entropy.share.mean()),
        "adjacent layers, FFN experts (Pearson)": number(_mean(summary.correlation.adjacent_ffn)),
        "adjacent layers, first choices (Cramér's V)": number(_mean(summary.correlation.adjacent_first)),
        "loss and FFN experts (Spearman)": number(summary.losses.spearman),
        "dropped": "–" if math.isnan(summary.dropped.total) else f"{100 * summary.dropped.total:.1f} %",
    }


def warning(summaries: Mapping[str, Summary]) -> str | None:
    """What keeps these models' numbers from being compared."""
    if len({one.sample.facts.tokenizer_hash for one in summaries.values()}) == 1:
        return None
    return "the models' tokenizers differ: --max-tokens ends the text elsewhere, and losses per token do not compare"


def number(value: float) -> str:
    """A dash where there is no number."""
    return "–" if math.isnan(value) else f"{value:.3f}"


def _mean(values: np.ndarray) -> float:
    """Of those that there are."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else math.nan
