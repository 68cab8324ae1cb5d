"""The columns of a routing table's file, one row for each choice: out of the arrays in memory, and back into them.

T tokens, L MoE layers, K top-k. Rows are ordered by token, then layer, then slot.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config import EXPERT_TYPES
from ..files import readable

if TYPE_CHECKING:
    from .routing_table import RoutingTable

NUMBERS = ("score", "weight", "kept")
"""The columns that differ from choice to choice, where all others repeat themselves."""
_GROUP = 1 << 20  # rows at once
_TYPES = (*EXPERT_TYPES, "none")


def row_groups(table: "RoutingTable", metadata: dict[bytes, bytes]) -> Iterator[Any]:
    """Arrow tables of a million rows at most."""
    import pyarrow as pa

    layout, choices = table.layout, table.num_layers * table.top_k
    ids = np.fromiter(table.vocabulary, np.int32, len(table.vocabulary))
    texts = pa.array(list(table.vocabulary.values()), pa.string())
    sources = pa.array([readable(name) for name in table.sources], pa.string())
    kinds = pa.array(_TYPES, pa.string())
    kind_of = np.repeat(np.arange(len(_TYPES), dtype=np.int8), [*map(layout.count, EXPERT_TYPES), 1])
    layer = np.repeat(np.arange(table.num_layers, dtype=np.uint16), table.top_k)
    slot = np.tile(np.arange(table.top_k, dtype=np.uint8), table.num_layers)
    source = table.source
    step = max(1, _GROUP // choices)
    for start in range(0, table.num_tokens, step):
        rows = slice(start, start + step)
        count = len(table.token[rows])
        word = np.searchsorted(ids, table.token[rows]).astype(np.int32)
        expert = table.expert[rows].reshape(-1)
        columns = {
            "document": table.document[rows].repeat(choices),
            "source": pa.DictionaryArray.from_arrays(source[rows].repeat(choices), sources),
            "position": table.position[rows].repeat(choices),
            "token_id": table.token[rows].repeat(choices),
            "token": pa.DictionaryArray.from_arrays(word.repeat(choices), texts),
            "layer": np.tile(layer, count),
            "slot": np.tile(slot, count),
            "expert": expert,
            "type": pa.DictionaryArray.from_arrays(kind_of[expert], kinds),
            "score": table.score[rows].reshape(-1),
            "weight": table.weight[rows].reshape(-1),
            "kept": table.kept[rows].reshape(-1),
            "entropy": table.entropy[rows].reshape(-1).repeat(table.top_k),
            # NaN becomes null, which averages skip.
            "loss": pa.array(table.loss[rows].repeat(choices), from_pandas=True),
        }
        yield pa.table(columns).replace_schema_metadata(metadata)


def read_columns(file: Any, tokens: int, layers: int, top_k: int) -> dict[str, np.ndarray]:
    """The arrays of a table out of an open Parquet file, one column after another: no two are in memory twice.

    Raises:
        ValueError, KeyError: the rows are not those of such a table.
    """

    def read(name: str) -> np.ndarray:
        column = file.read(columns=[name])[name].to_numpy()
        if len(column) != tokens * layers * top_k:
            raise ValueError(f"{len(column):,} rows instead of {tokens * layers * top_k:,}")
        return column.reshape(tokens, layers, top_k)

    for name, expected in (("layer", np.arange(layers)[:, None]), ("slot", np.arange(top_k))):
        if not (read(name) == expected).all():
            raise ValueError("its rows are in another order")
    arrays = {name: np.ascontiguousarray(read(name)) for name in ("expert", "score", "weight", "kept")}
    arrays["entropy"] = read("entropy")[:, :, 0].copy()
    arrays |= {name: read(name)[:, 0, 0].copy() for name in ("loss", "position", "document")}
    arrays["token"] = read("token_id")[:, 0, 0].copy()
    return arrays
