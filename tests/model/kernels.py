"""Which kernels ``experts_implementation`` runs: what each name calls, and a counter of the calls."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
import transformers.integrations.moe as stock

import moepp.ops
from moepp.layers import routing

from .factory import counted

LAYERS = 3
# What one forward pass through three layers calls: our kernels once a layer, the products of a SwiGLU network twice.
RUNS = {
    "auto": {"onednn": LAYERS},
    "onednn": {"onednn": LAYERS},
    "fused": {"fused": LAYERS},
    "fused_recompute": {"fused_recompute": LAYERS},
    "grouped": {"grouped": LAYERS, "torch grouped_mm": 2 * LAYERS},
    "reference": {"reference": LAYERS},
    "triton": {"triton": LAYERS, "fused routing": LAYERS},
    "eager": {"reference": LAYERS},
    "grouped_mm": {"stock grouped": 2 * LAYERS, "torch grouped_mm": 2 * LAYERS},
    "batched_mm": {"stock batched": 2 * LAYERS},
}


def count_ours(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts the calls of each of our kernels."""
    counter: Counter[str] = Counter()
    for name, backend in list(moepp.ops._BACKENDS.items()):
        monkeypatch.setitem(moepp.ops._BACKENDS, name, replace(backend, run=counted(counter, name, backend.run)))
    return counter


def count_all(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts the calls of each kernel, ours, transformers' and torch's."""
    counter = count_ours(monkeypatch)

    def spy(owner: object, attribute: str, name: str) -> None:
        monkeypatch.setattr(owner, attribute, counted(counter, name, getattr(owner, attribute)))

    spy(routing, "fused_routing", "fused routing")
    spy(stock, "_grouped_linear", "stock grouped")
    spy(stock, "_batched_linear", "stock batched")
    spy(torch.nn.functional, "grouped_mm", "torch grouped_mm")
    return counter
