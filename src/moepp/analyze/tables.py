"""What a :class:`RoutingTable` says, in numbers: pure functions, each with the paper's figure that it is behind.

How much the experts are used: their load, experts per token and per token type, balance, drops. What scores and layers
have to do with each other is in :mod:`moepp.analyze.relations`.

T tokens, L MoE layers, K top-k, E all experts, G groups of text. Experts *per token* are those that the token went
through: dropped choices don't count. An expert's *load* is what the router asked of it: they do.
"""

import math
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Literal

import numpy as np
from jaxtyping import Float64, Int32, Int64

from ..config import EXPERT_TYPES, ExpertLayout, ExpertType
from .routing_table import RoutingTable

Grouping = Literal["all", "source", "document"]
_LEAST = 5  # occurrences, for a confidence interval


@dataclass(frozen=True)
class ExpertLoad:
    """Figure 4, and A to E of the appendix: how the router shares out the choices."""

    groups: tuple[str, ...]
    count: Int64[np.ndarray, "G L E"]
    """Choices, dropped ones included."""
    share: Float64[np.ndarray, "G L E"]
    """Of the group's choices in the layer: each row sums to 1; NaN for a group without tokens."""


@dataclass(frozen=True)
class ExpertsPerToken:
    """Figure 4's numbers beside the tasks: how many experts of one type a token goes through in a layer, on average."""

    kind: ExpertType
    groups: tuple[str, ...]
    tokens: Int64[np.ndarray, "G"]
    layers: Float64[np.ndarray, "G L"]
    """Experts per token; NaN for a group without tokens."""
    mean: Float64[np.ndarray, "G"]
    """Over the layers."""


@dataclass(frozen=True)
class TokenTypes:
    """Figure 5 and A: experts of one type per token, by token type, the most first.

    An occurrence counts as its mean over the layers. The confidence interval of a type's mean is Student's,
    mean ± t · s / √n, with the sample variance s² over its n occurrences, cut off at 0 and K; it takes them for
    independent, which neighbours in one text are not quite. Of fewer than 5 it would say nothing.
    """

    kind: ExpertType
    token: Int32[np.ndarray, "V"]
    text: tuple[str, ...]
    count: Int64[np.ndarray, "V"]
    mean: Float64[np.ndarray, "V"]
    """Experts per token and layer."""
    low: Float64[np.ndarray, "V"]
    """The interval's ends, at 95 %; NaN for fewer than 5 occurrences."""
    high: Float64[np.ndarray, "V"]

    def at_least(self, count: int) -> "TokenTypes":
        """Those that occur so often."""
        kept = np.flatnonzero(self.count >= count)
        arrays = {name: getattr(self, name)[kept] for name in ("token", "count", "mean", "low", "high")}
        return replace(self, text=tuple(self.text[index] for index in kept), **arrays)


@dataclass(frozen=True)
class Imbalance:
    """How far the load is from its aim, by layer: 1 and 0 where it is just so.

    With r an expert's share of the choices over the share it is meant to have: the largest r (max/mean, where all are
    meant to have the same), and sqrt(mean((r - 1)²)) (then the coefficient of variation).
    """

    ffn_max: Float64[np.ndarray, "L"]
    """Among the FFN experts, which are meant to share evenly."""
    ffn_variation: Float64[np.ndarray, "L"]
    all_max: Float64[np.ndarray, "L"]
    """Among all experts: each zero-computation expert is meant to take 1/tau of an FFN expert's load (Eq. 7)."""
    all_variation: Float64[np.ndarray, "L"]


@dataclass(frozen=True)
class Dropped:
    """The share of choices that capacity dropped (Eq. 8); NaN where there were none."""

    types: tuple[ExpertType, ...]
    layers: Float64[np.ndarray, "L 4"]
    overall: Float64[np.ndarray, "4"]
    total: float


def expert_load(table: RoutingTable, by: Grouping = "all") -> ExpertLoad:
    """Choices of each expert, by layer and group of text (Figure 4, and A to E)."""
    groups, member = group_tokens(table, by)
    experts = table.layout.num_experts
    count = np.zeros((len(groups), table.num_layers, experts), np.int64)
    for layer in range(table.num_layers):
        cell = member[:, None] * np.int64(experts + 1) + table.expert[:, layer]  # one more: nobody
        counts = np.bincount(cell.ravel(), minlength=len(groups) * (experts + 1))
        count[:, layer] = counts.reshape(len(groups), experts + 1)[:, :experts]
    return ExpertLoad(groups, count, ratio(count, count.sum(axis=-1, keepdims=True)))


def experts_per_token(table: RoutingTable, kind: ExpertType = "ffn", by: Grouping = "all") -> ExpertsPerToken:
    """Experts of one type that a token goes through, by layer and group of text (Figure 4)."""
    groups, member = group_tokens(table, by)
    tokens = np.bincount(member, minlength=len(groups))
    active = table.active(kind)
    sums = [np.bincount(member, active[:, layer], minlength=len(groups)) for layer in range(table.num_layers)]
    layers = ratio(np.stack(sums, axis=-1), tokens[:, None])
    return ExpertsPerToken(kind, groups, tokens, layers, layers.mean(axis=-1))


def token_types(table: RoutingTable, kind: ExpertType = "ffn", *, min_count: int = 10) -> TokenTypes:
    """Experts of one type per token, by token type (Figure 5; zero, copy and constant experts: Figure A).

    Args:
        min_count: types that occur less often are left out.
    """
    values = table.active(kind).mean(axis=-1, dtype=np.float64)
    ids, place, count = np.unique(table.token, return_inverse=True, return_counts=True)
    mean = np.bincount(place, values, minlength=len(ids)) / count
    squares = np.bincount(place, (values - mean[place]) ** 2, minlength=len(ids))
    error = np.where(count < _LEAST, np.nan, _student(count - 1) * np.sqrt(ratio(squares, count - 1) / count))
    often = np.flatnonzero(count >= min_count)
    order = often[np.lexsort((ids[often], -mean[often]))]
    return TokenTypes(
        kind=kind,
        token=ids[order],
        text=tuple(table.vocabulary[token] for token in ids[order].tolist()),
        count=count[order],
        mean=mean[order],
        low=(mean - error)[order].clip(min=0),
        high=(mean + error)[order].clip(max=table.top_k),
    )


def imbalance(table: RoutingTable) -> Imbalance:
    """How far each layer's load is from its aim; no figure of the paper, which tells the aim alone (Eq. 7)."""
    load = expert_load(table).count[0].astype(np.float64)
    ffn = load[:, : table.layout.ffn]
    every = _off_aim(load, load_aim(table.layout, table.facts.tau))
    among = _off_aim(ffn, np.full(table.layout.ffn, 1 / table.layout.ffn))
    return Imbalance(*among, *every)


def load_aim(layout: ExpertLayout, tau: float) -> Float64[np.ndarray, "E"]:
    """The share of the choices that each expert is meant to have: Eq. 7 is least at 1/eta (Table 1)."""
    wanted = np.where(np.arange(layout.num_experts) < layout.ffn, tau, 1.0)
    return wanted / wanted.sum()


def dropped(table: RoutingTable) -> Dropped:
    """What capacity dropped, by expert type and layer."""
    asked, lost = (np.zeros((table.num_layers, len(EXPERT_TYPES)), np.int64) for _ in range(2))
    for column, kind in enumerate(EXPERT_TYPES):
        ids = table.layout.indices(kind)
        chosen = (table.expert >= ids.start) & (table.expert < ids.stop)
        asked[:, column] = chosen.sum(axis=(0, 2))
        lost[:, column] = asked[:, column] - table.active(kind).sum(axis=0, dtype=np.int64)
    total = lost.sum() / asked.sum() if asked.sum() else math.nan
    return Dropped(EXPERT_TYPES, ratio(lost, asked), ratio(lost.sum(axis=0), asked.sum(axis=0)), float(total))


def group_tokens(table: RoutingTable, by: Grouping) -> tuple[tuple[str, ...], Int32[np.ndarray, "T"]]:
    """The groups' names, and which of them each token belongs to."""
    if by == "source":
        return table.sources, table.source
    if by == "document":
        return tuple(document.name for document in table.documents), table.document
    return ("all",), np.zeros(table.num_tokens, np.int32)


def _off_aim(load: np.ndarray, aim: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(L,) the largest of each layer's shares over their aims, and how much they vary."""
    relative = ratio(load, load.sum(axis=-1, keepdims=True)) / aim
    return relative.max(axis=-1), np.sqrt(((relative - 1) ** 2).mean(axis=-1))


def _student(free: np.ndarray) -> np.ndarray:
    """How many standard errors to both sides hold 95 % of Student's distribution, by degrees of freedom.

    The expansion around the normal distribution (Abramowitz and Stegun 26.7.5): right to 0.05 % from 4 on.
    """
    z, v = NormalDist().inv_cdf(0.975), np.maximum(free, 1).astype(np.float64)
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * v**4)
    )


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """``part / whole``; NaN, without a warning, where there is nothing to divide by."""
    return np.divide(part, whole, out=np.full(np.broadcast_shapes(part.shape, whole.shape), np.nan), where=whole > 0)
