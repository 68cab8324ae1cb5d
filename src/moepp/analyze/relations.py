"""What the routing has to do with itself and with the text: scores, layers, loss, position, and another table.

T tokens, L MoE layers, K top-k, E all experts, B bins.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt8

from ..errors import DataError
from .routing_table import RoutingTable
from .tables import ratio

_BINS = 16
_ROWS = 1 << 16  # of a table at once


@dataclass(frozen=True)
class ScoreDensity:
    """Figure 6: how the scores of a token's first, second, … choice are distributed.

    A score is the router's probability of the chosen expert, before ``combine``. Nobody, where an edit took a choice
    away, has none; NaN where no score is left.
    """

    edges: Float64[np.ndarray, "B+1"]
    layers: Float64[np.ndarray, "L K B"]
    """Densities: over the bins, they integrate to 1."""
    overall: Float64[np.ndarray, "K B"]
    layer_mean: Float64[np.ndarray, "L K"]
    layer_variance: Float64[np.ndarray, "L K"]
    mean: Float64[np.ndarray, "K"]
    """Over all layers' tokens."""
    variance: Float64[np.ndarray, "K"]


@dataclass(frozen=True)
class RouterEntropy:
    """How undecided the routers are, by layer."""

    mean: Float64[np.ndarray, "L"]
    """Nats."""
    share: Float64[np.ndarray, "L"]
    """Of log E, which a router that knows nothing has."""


@dataclass(frozen=True)
class LayerCorrelation:
    """How much of one layer's routing is told by another's; NaN for a layer in which nothing varies.

    A token whose first choice is nobody, in one of the two layers, has no part in ``first``.
    """

    ffn: Float64[np.ndarray, "L L"]
    """Pearson's correlation of a token's FFN experts in both layers, in [-1, 1]."""
    first: Float64[np.ndarray, "L L"]
    """Cramér's V of the first choices, in [0, 1]: 0 for unrelated, 1 where one tells the other. With the bias
    correction of Bergsma (2013), without which few tokens and many experts look related."""

    @property
    def adjacent_ffn(self) -> Float64[np.ndarray, "L-1"]:
        """Of each layer with the next."""
        return self.ffn.diagonal(1)

    @property
    def adjacent_first(self) -> Float64[np.ndarray, "L-1"]:
        return self.first.diagonal(1)


@dataclass(frozen=True)
class LossByExperts:
    """Whether the tokens that get more computation are those that were hard to predict."""

    ffn: Int64[np.ndarray, "N"]
    """FFN experts of a token, summed over the layers: the values that occur."""
    tokens: Int64[np.ndarray, "N"]
    loss: Float64[np.ndarray, "N"]
    """Mean, nats per token."""
    spearman: float
    """Rank correlation over the predicted tokens, in [-1, 1]; NaN where nothing varies."""


@dataclass(frozen=True)
class ByPosition:
    """How routing and loss change with the context that a token has."""

    edges: Int64[np.ndarray, "B+1"]
    """Positions: bin b is [edges[b], edges[b + 1])."""
    tokens: Int64[np.ndarray, "B"]
    ffn: Float64[np.ndarray, "B"]
    """FFN experts per token and layer; NaN for a bin without tokens."""
    loss: Float64[np.ndarray, "B"]
    """Mean, nats per token; NaN where no token was predicted."""


def score_density(table: RoutingTable, bins: int = 50) -> ScoreDensity:
    """Density, mean and variance of the scores, by choice and layer (Figure 6)."""
    edges = np.linspace(0.0, 1.0, bins + 1)
    count = np.zeros((table.num_layers, table.top_k, bins), np.int64)
    mean, variance = (np.full(count.shape[:2], np.nan) for _ in range(2))
    for layer, slot in np.ndindex(*count.shape[:2]):
        scores = table.score[table.expert[:, layer, slot] < table.layout.num_experts, layer, slot]
        # Not a probability above 1, but a rounding.
        count[layer, slot] = np.histogram(scores.clip(0.0, 1.0), edges)[0]
        if len(scores):
            mean[layer, slot] = scores.mean(dtype=np.float64)
            variance[layer, slot] = scores.var(dtype=np.float64)
    overall, scored = count.sum(axis=0), count.sum(axis=-1)

    def pooled(values: np.ndarray) -> np.ndarray:
        return ratio(np.nansum(values * scored, axis=0), scored.sum(axis=0))

    centre = pooled(mean)
    return ScoreDensity(
        edges=edges,
        layers=bins * ratio(count, scored[..., None]),
        overall=bins * ratio(overall, overall.sum(axis=-1, keepdims=True)),
        layer_mean=mean,
        layer_variance=variance,
        mean=centre,
        variance=pooled(variance + (mean - centre) ** 2),
    )


def router_entropy(table: RoutingTable) -> RouterEntropy:
    """Mean entropy of each layer's router; no figure of the paper."""
    mean = table.entropy.mean(axis=0, dtype=np.float64)
    return RouterEntropy(mean, ratio(mean, np.log([table.layout.num_experts])))


def layer_correlation(table: RoutingTable) -> LayerCorrelation:
    """How much one layer's routing tells of another's: what gating residuals (Eq. 6) are meant to raise."""
    layers, nobody = table.num_layers, table.layout.num_experts
    experts = nobody + 1
    association = np.full((layers, layers), np.nan)
    for a in range(layers):
        for b in range(a, layers):
            pair = table.expert[:, a, 0].astype(np.int64) * experts + table.expert[:, b, 0]
            counts = np.bincount(pair, minlength=experts**2).reshape(experts, experts)
            association[a, b] = association[b, a] = cramers_v(counts[:nobody, :nobody])
    return LayerCorrelation(_correlations(table.active("ffn")), association)


def _correlations(counts: UInt8[np.ndarray, "T L"]) -> Float64[np.ndarray, "L L"]:
    """Pearson's, of every two columns of small numbers; their sums are exact, so that they need not be centred."""
    squares, sums = np.zeros((counts.shape[1],) * 2), counts.sum(axis=0, dtype=np.float64)
    for start in range(0, len(counts), _ROWS):
        some = counts[start : start + _ROWS].astype(np.float64)
        squares += some.T @ some
    covariance = len(counts) * squares - np.outer(sums, sums)
    spread = np.sqrt(covariance.diagonal())
    return ratio(covariance, np.outer(spread, spread))


def loss_by_experts(table: RoutingTable) -> LossByExperts:
    """Mean loss by the FFN experts that a token gets; no figure of the paper."""
    predicted = ~np.isnan(table.loss)
    ffn, loss = table.active("ffn").sum(axis=1, dtype=np.int64)[predicted], table.loss[predicted]
    values, place, count = np.unique(ffn, return_inverse=True, return_counts=True)
    sums = np.bincount(place, loss, minlength=len(values))
    return LossByExperts(values, count, sums / count, pearson(ranks(ffn), ranks(loss)))


def by_position(table: RoutingTable, edges: Sequence[int] | None = None) -> ByPosition:
    """FFN experts and loss by position in the window.

    Args:
        edges: of the bins, ascending; by default 16 of equal width over the longest window.
    """
    if edges is None:
        longest = int(table.position.max()) + 1
        edges = np.unique(np.linspace(0, longest, min(_BINS, longest) + 1).round().astype(np.int64)).tolist()
    bounds = np.asarray(edges, np.int64)
    place = np.searchsorted(bounds, table.position, side="right")  # 0 is before the first bin
    ffn = table.active("ffn").mean(axis=1, dtype=np.float64)
    predicted = ~np.isnan(table.loss)

    def sums(places: np.ndarray, values: np.ndarray | None = None) -> np.ndarray:
        return np.bincount(places, values, minlength=len(bounds) + 1)[1 : len(bounds)]

    tokens = sums(place)
    loss = ratio(sums(place[predicted], table.loss[predicted]), sums(place[predicted]))
    return ByPosition(bounds, tokens, ratio(sums(place, ffn), tokens), loss)


def agreement(one: RoutingTable, other: RoutingTable) -> Bool[np.ndarray, "T L"]:
    """Whether both models send a token to the same set of experts, by token and layer.

    Raises:
        DataError: the tables are of other text, tokens, layers or experts.
    """
    for what, mine, theirs in (
        ("tokenizers", one.facts.tokenizer_hash, other.facts.tokenizer_hash),
        ("text", one.facts.text_hash, other.facts.text_hash),
        ("experts", one.layout, other.layout),
        ("layers or top-k", one.expert.shape[1:], other.expert.shape[1:]),
    ):
        if mine != theirs:
            raise DataError(
                f"the tables of {one.facts.model!r} and {other.facts.model!r} differ in their {what}, so that their "
                "choices cannot be compared; make both from the same text, of models of the same shape"
            )
    return (np.sort(one.expert, axis=-1) == np.sort(other.expert, axis=-1)).all(axis=-1)


def pearson(one: np.ndarray, other: np.ndarray) -> float:
    """The correlation of two columns of numbers; NaN where one of them is constant."""
    if len(one) == 0 or one.min() == one.max() or other.min() == other.max():
        return np.nan
    x, y = (values - values.mean(dtype=np.float64) for values in (one, other))
    return float((x @ y) / np.sqrt((x @ x) * (y @ y)))


def ranks(values: np.ndarray) -> Float64[np.ndarray, "T"]:
    """From 0; equal values share the mean of theirs."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count) - 1
    return (last - (count - 1) / 2)[place]


def cramers_v(counts: Int64[np.ndarray, "R C"]) -> float:
    """Association of two categories out of how often each pair occurs, bias-corrected (Bergsma 2013).

    NaN where one of them has a single value.
    """
    counts = counts[counts.any(axis=1)][:, counts.any(axis=0)]
    rows, columns = counts.shape
    total = counts.sum()
    if rows < 2 or columns < 2:
        return np.nan
    expected = counts.sum(axis=1, keepdims=True) * (counts.sum(axis=0, keepdims=True) / total)
    phi = ((counts - expected) ** 2 / expected).sum() / total
    free = total - 1
    corrected = max(0.0, phi - (rows - 1) * (columns - 1) / free)
    fewer = min(rows - (rows - 1) ** 2 / free, columns - (columns - 1) ** 2 / free) - 1
    return float(np.sqrt(corrected / fewer)) if fewer > 0 else np.nan
