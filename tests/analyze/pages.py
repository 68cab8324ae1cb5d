"""Routing tables of a text that would like to be markup, for the page and the figures."""

from dataclasses import replace

import numpy as np

from moepp.analyze import Document, RoutingTable
from moepp.config import ExpertLayout

from .factory import LAYOUT, random_table

VANILLA = ExpertLayout(ffn=4, constant=0, copy=0, zero=0)
HOSTILE = (
    "</script><script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'>",
    "<!--",
    "{{ 7 * 7 }}",
    "$x_1$",
    "&lt;",
    "\u2028",
    "\ud800",
    "\x00",
    "",
)
PLAIN = ("\n", "\n    ", "\t", " return", " Return", "return_", " a", "b", " token", "é", "深")


def hostile_table(
    tokens: int = 1200, layers: int = 3, *, layout: ExpertLayout = LAYOUT, seed: int = 0, drops: bool = True
) -> RoutingTable:
    """A random table whose text is the same for every seed, layout and number of layers."""
    table = random_table(tokens, layers, layout=layout, seed=seed)
    words = [*HOSTILE, *PLAIN]
    token = np.random.default_rng(7).integers(0, len(words), tokens).astype(np.int32)
    kept = table.kept if drops else np.ones_like(table.kept)
    return replace(
        table,
        token=token,
        kept=kept,
        weight=table.score * kept,
        vocabulary={at: words[at] for at in np.unique(token).tolist()},
        documents=tuple(Document(f"<i>{at}</i>", ("prose", "<b>code</b>")[at % 2]) for at in range(-(-tokens // 50))),
    )


def several() -> dict[str, RoutingTable]:
    """A model with drops, its vanilla twin, and one of a single layer on other text."""
    return {
        "MoE++ <1>": hostile_table(),
        "vanilla": hostile_table(layout=VANILLA, seed=1, drops=False),
        "one layer": hostile_table(400, 1, seed=2),
    }
