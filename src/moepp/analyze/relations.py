"""What the routing has to do with itself and with the text: scores, layers, loss, position, and another table.

T tokens, L MoE layers, K top-k, E all experts, B bins.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from ..errors import DataError
from .routing_table import RoutingTable


@dataclass(frozen=True)
class ScoreDensity:
    """Figure 6: how the scores of a token's first, second, … choice are distributed.

    A score is the router's probability of the chosen expert, before ``combine``.
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
    """How much of one layer's routing is told by another's; NaN for a layer in which nothing varies."""

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
    raise NotImplementedError


def router_entropy(table: RoutingTable) -> RouterEntropy:
    """Mean entropy of each layer's router; no figure of the paper."""
    raise NotImplementedError


def layer_correlation(table: RoutingTable) -> LayerCorrelation:
    """How much one layer's routing tells of another's: what gating residuals (Eq. 6) are meant to raise."""
    raise NotImplementedError


def loss_by_experts(table: RoutingTable) -> LossByExperts:
    """Mean loss by the FFN experts that a token gets; no figure of the paper."""
    raise NotImplementedError


def by_position(table: RoutingTable, edges: Sequence[int] | None = None) -> ByPosition:
    """FFN experts and loss by position in the window.

    Args:
        edges: of the bins, ascending; by default 16 of equal width over the longest window.
    """
    raise NotImplementedError


def agreement(one: RoutingTable, other: RoutingTable) -> Bool[np.ndarray, "T L"]:
    """Whether both models send a token to the same set of experts, by token and layer.

    Raises:
        DataError: the tables are of other text, tokens, layers or experts.
    """
    raise DataError("not yet")
