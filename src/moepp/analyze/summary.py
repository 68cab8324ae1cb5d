"""What the command, the page and the figures show of one table, computed once: a million tokens take seconds a time."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from ..config import EXPERT_TYPES, ExpertType
from .relations import (
    ByPosition,
    LayerCorrelation,
    LossByExperts,
    RouterEntropy,
    ScoreDensity,
    by_position,
    layer_correlation,
    loss_by_experts,
    router_entropy,
    score_density,
)
from .routing_table import RoutingTable
from .sample import sample
from .tables import (
    Dropped,
    ExpertLoad,
    ExpertsPerToken,
    Imbalance,
    TokenTypes,
    dropped,
    expert_load,
    experts_per_token,
    imbalance,
    load_aim,
    ratio,
    token_types,
)


@dataclass(frozen=True)
class Summary:
    """What the functions of :mod:`.tables` and :mod:`.relations` say of a table."""

    sample: RoutingTable
    """What the page shows token by token; everything else is of all tokens. A whole table may take gigabytes."""
    num_tokens: int
    text: str
    """A hash of the documents' tokens: the same for models that can be compared token by token."""
    vanilla: bool
    """No zero-computation experts: every token uses K FFN experts."""
    aim: float
    """FFN experts per token once tau's balance holds (Table 1)."""
    loss: float
    """Mean over the predicted tokens, nats; NaN where none was."""
    per_token: Mapping[ExpertType, ExpertsPerToken]
    per_token_by_source: Mapping[ExpertType, ExpertsPerToken]
    types: Mapping[ExpertType, TokenTypes]
    """Every token type that occurs."""
    load: ExpertLoad
    load_by_source: ExpertLoad
    scores: ScoreDensity
    entropy: RouterEntropy
    correlation: LayerCorrelation
    losses: LossByExperts
    loss_of_type: Float64[np.ndarray, "V"]
    """Mean by token id, nats; NaN where it was never predicted."""
    positions: ByPosition
    imbalance: Imbalance
    dropped: Dropped

    @property
    def least(self) -> int:
        """Occurrences that a token type needs to be ranked: a rare one's mean says little. Some always are."""
        return min(int(np.clip(self.num_tokens // 2000, 5, 50)), int(self.types["ffn"].count.max()))

    @property
    def ffn(self) -> float:
        """FFN experts per token and layer."""
        return float(self.per_token["ffn"].mean[0])

    @property
    def full(self) -> bool:
        """Every token uses K FFN experts in every layer: none was dropped either."""
        return self.vanilla and self.ffn == self.sample.top_k

    @property
    def saved(self) -> float:
        """The share of expert FLOPs against K FFN experts for every token; the shared ones, both have."""
        return (self.sample.top_k - self.ffn) / (self.sample.top_k + self.sample.facts.shared_experts)


def summarize(table: RoutingTable) -> Summary:
    """All of it; a table has one token at least."""
    predicted = table.loss[~np.isnan(table.loss)]
    return Summary(
        sample=sample(table),
        num_tokens=table.num_tokens,
        text=_hash(table),
        vanilla=table.layout.num_zero_computation == 0,
        aim=float(table.top_k * load_aim(table.layout, table.facts.tau)[: table.layout.ffn].sum()),
        loss=float(predicted.mean(dtype=np.float64)) if len(predicted) else np.nan,
        per_token={kind: experts_per_token(table, kind) for kind in EXPERT_TYPES},
        per_token_by_source={kind: experts_per_token(table, kind, by="source") for kind in EXPERT_TYPES},
        types={kind: token_types(table, kind, min_count=1) for kind in EXPERT_TYPES},
        load=expert_load(table),
        load_by_source=expert_load(table, "source"),
        scores=score_density(table),
        entropy=router_entropy(table),
        correlation=layer_correlation(table),
        losses=loss_by_experts(table),
        loss_of_type=_loss_of_type(table),
        positions=by_position(table),
        imbalance=imbalance(table),
        dropped=dropped(table),
    )


def _loss_of_type(table: RoutingTable) -> np.ndarray:
    predicted = ~np.isnan(table.loss)
    token, size = table.token[predicted], int(table.token.max()) + 1
    return ratio(np.bincount(token, table.loss[predicted], size), np.bincount(token, minlength=size))


def _hash(table: RoutingTable) -> str:
    words = repr((table.documents, sorted(table.vocabulary.items())))
    digest = hashlib.sha256(words.encode())
    digest.update(table.token.tobytes())
    digest.update(table.document.tobytes())
    return digest.hexdigest()
