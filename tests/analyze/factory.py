"""Routing tables of known numbers, without a model."""

from dataclasses import replace
from typing import Any

import numpy as np

from moepp.analyze import Document, Facts, RoutingTable
from moepp.analyze.routing_table import expert_dtype
from moepp.config import ExpertLayout

LAYOUT = ExpertLayout(ffn=4, constant=2, copy=1, zero=1)
FACTS = Facts(
    model="some",
    fingerprint="f" * 64,
    tau=0.5,
    gating_residual=True,
    dtype="float32",
    window=16,
    edited=False,
    tokenizer_hash="t",
    text_hash="x",
    versions={"torch": "2"},
    command="moepp analyze some",
)


def random_table(
    tokens: int = 200, layers: int = 3, top_k: int = 2, *, layout: ExpertLayout = LAYOUT, seed: int = 0, **facts: Any
) -> RoutingTable:
    """Distinct experts per token, some of them dropped, in documents of 50 tokens and windows of 16; no loss is NaN
    but a window's first."""
    rng = np.random.default_rng(seed)
    shape = (tokens, layers, top_k)
    order = rng.random((tokens, layers, layout.num_experts)).argsort(axis=-1)
    score = -np.sort(-rng.random(shape, dtype=np.float32), axis=-1) / 2
    kept = rng.random(shape) < 0.9
    token = rng.integers(0, 20, tokens).astype(np.int32)
    position = (np.arange(tokens, dtype=np.int32) % 50) % 16
    loss = rng.random(tokens, dtype=np.float32) * 5
    loss[position == 0] = np.nan
    documents = -(-tokens // 50)
    return RoutingTable(
        layout=layout,
        expert=order[:, :, :top_k].astype(expert_dtype(layout)),
        score=score,
        weight=score * kept,
        kept=kept,
        entropy=rng.random(shape[:2], dtype=np.float32),
        loss=loss,
        token=token,
        position=position,
        document=(np.arange(tokens) // 50).astype(np.int32),
        vocabulary={token: f"t{token}" for token in np.unique(token).tolist()},
        documents=tuple(Document(f"d{n}", "ab"[n % 2]) for n in range(documents)),
        facts=replace(FACTS, **facts),
    )


def written_table(expert: list, *, layout: ExpertLayout = LAYOUT, **fields: Any) -> RoutingTable:
    """A table out of nested lists (tokens, layers, choices); nothing is dropped unless ``fields`` say so."""
    choices = np.array(expert, expert_dtype(layout))
    base = random_table(*choices.shape, layout=layout)
    arrays = {name: np.array(value, getattr(base, name).dtype) for name, value in fields.items()}
    return replace(base, **({"expert": choices, "kept": np.ones_like(choices, np.bool_)} | arrays))
