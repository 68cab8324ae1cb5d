"""The checkpoint that the paper's authors published: which of its tensors is which of ours.

:data:`ROWS` says it once. transformers' loading, ``moepp convert`` and the check of a folder are all derived from it.

Letters of shapes: V vocabulary, D hidden, Q query heads times their width, G the same of key and value heads, E all
experts, H hidden width of the tanh gate, F intermediate.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import MergeModulelist, WeightConverter, WeightRenaming
from transformers.utils import CONFIG_NAME

from ..config import ExpertType, Gate
from ..errors import ConversionError
from ..layers.routing import TANH_WIDTH
from .configuration_moepp import MoEPPConfig
from .released_config import is_published
from .shards import read_json, read_shard, weight_files

LAYER = "model.layers.{layer}."
_MOE, _EXPERT = LAYER + "mlp.moe.", LAYER + "mlp.moe.experts.experts.{expert}."
_ATTENTION, _MLP = LAYER + "self_attn.", LAYER + "mlp."


class Row(NamedTuple):
    """One kind of published tensor."""

    kind: str
    """For people."""
    published: str
    ours: str
    shape: str
    """Of the published tensor."""
    experts: ExpertType | None = None
    """The experts that ``{expert}`` counts; ours holds theirs stacked, in order."""
    gate: Gate | None = None
    """The only gate with which the tensor exists."""


# Rows 0 to F-1 of an up_proj are SiLU's side, as in our gate_up_proj.
ROWS = (
    Row("embeddings", "model.embed_tokens.weight", "model.embed_tokens.weight", "V D"),
    *(
        Row("attention", f"{_ATTENTION}{name}_proj.weight", f"{_ATTENTION}{name}_proj.weight", shape)
        for name, shape in {"q": "Q D", "k": "G D", "v": "G D", "o": "D Q"}.items()
    ),
    Row("norms", f"{LAYER}input_layernorm.weight", f"{LAYER}input_layernorm.weight", "D"),
    Row("norms", f"{LAYER}post_attention_layernorm.weight", f"{LAYER}post_attention_layernorm.weight", "D"),
    Row("routers", f"{_MOE}gate.wg.weight", f"{_MLP}router.weight", "E D", gate="linear"),
    Row("routers", f"{_MOE}gate.wg.0.weight", f"{_MLP}router.hidden.weight", "H D", gate="tanh_mlp"),
    Row("routers", f"{_MOE}gate.wg.2.weight", f"{_MLP}router.weight", "E H", gate="tanh_mlp"),
    Row("gating residuals", f"{_MOE}gate.gate_map.weight", f"{_MLP}router.residual.weight", "E E"),
    Row("FFN experts", f"{_EXPERT}up_proj.weight", f"{_MLP}experts.gate_up_proj", "2F D", experts="ffn"),
    Row("FFN experts", f"{_EXPERT}down_proj.weight", f"{_MLP}experts.down_proj", "D F", experts="ffn"),
    Row("constant experts", f"{_EXPERT}constant", f"{_MLP}zero_computation.constant", "D", experts="constant"),
    Row("constant experts", f"{_EXPERT}wg.weight", f"{_MLP}zero_computation.mix", "2 D", experts="constant"),
    Row("norms", "model.norm.weight", "model.norm.weight", "D"),
    Row("embeddings", "lm_head.weight", "lm_head.weight", "V D"),
)  # fmt: skip
UNUSED = LAYER.format(layer=0) + "mlp.moe.gate.gate_map.weight"
"""Layer 0 has nothing to remember: the published model stores the matrix and never reads it; ours has none."""
UNUSED_IN_OURS = r"layers\.0\.mlp\.router\.residual\.weight$"
"""Its name among ours, for transformers to pass over."""


class Place(NamedTuple):
    """Where one published tensor is in ours."""

    kind: str
    published: str
    ours: str | None
    """None where ours has no such tensor: it is kept aside, under its published name."""
    row: int | None
    """Its row in the stacked tensor."""
    shape: tuple[int, ...]
    optional: bool = False


def places(config: MoEPPConfig) -> Iterator[Place]:
    """Every tensor of a published checkpoint with this configuration, layer by layer."""
    rows = list(ROWS)
    inside = [row for row in rows if row.published.startswith(LAYER)]
    first, last = rows.index(inside[0]), rows.index(inside[-1]) + 1
    for row in rows[:first]:
        yield from _places(row, config)
    for layer in range(config.num_hidden_layers):
        for row in inside:
            if row.gate in (None, config.gate):
                yield from _places(row, config, layer)
    for row in rows[last:]:
        yield from _places(row, config)


def _places(row: Row, config: MoEPPConfig, layer: int | None = None) -> Iterator[Place]:
    shape = tuple(_sizes(config)[letter] for letter in row.shape.split())
    experts = [None] if row.experts is None else config.moe.layout().indices(row.experts)
    for number, expert in enumerate(experts):
        published = row.published.format(layer=layer, expert=expert)
        tied = published == "lm_head.weight" and config.tie_word_embeddings
        ours = None if tied or published == UNUSED else row.ours.format(layer=layer)
        kind = row.kind if ours else "kept aside"
        yield Place(kind, published, ours, None if expert is None else number, shape, optional=tied)


def _sizes(config: MoEPPConfig) -> dict[str, int]:
    experts, width = config.moe.layout().num_experts, config.head_dim
    assert width is not None
    assert config.num_key_value_heads is not None
    return {
        "V": config.vocab_size,
        "D": config.hidden_size,
        "Q": config.num_attention_heads * width,
        "G": config.num_key_value_heads * width,
        "E": experts,
        "H": TANH_WIDTH * experts,
        "F": config.intermediate_size,
        "2F": 2 * config.intermediate_size,
        "2": 2,
    }


def conversions() -> list[WeightRenaming | WeightConverter]:
    """:data:`ROWS` for transformers' own loading, which stacks what matches a ``*`` in the order of its numbers."""
    found: list[WeightRenaming | WeightConverter] = []
    for row in ROWS:
        source, target = (name.removeprefix(LAYER).replace("{expert}", "*") for name in (row.published, row.ours))
        if row.experts is not None:
            found.append(WeightConverter(source, target, operations=[MergeModulelist(dim=0)]))
        elif source != target:
            found.append(WeightRenaming(source, target))
    return found


register_checkpoint_conversion_mapping(MoEPPConfig.model_type, conversions(), overwrite=True)


def check_published(name: str | Path | None, subfolder: str = "") -> None:
    """Reads what a folder's shards say they hold, if it is one with the published checkpoint; of others, nothing.

    Raises:
        DataError: a file is missing or damaged.
        ConversionError: the configuration cannot be expressed, or the tensors are not those it describes.
    """
    folder = Path(name or "", subfolder)
    if name is None or not (folder / CONFIG_NAME).is_file() or not is_published(read_json(folder / CONFIG_NAME)):
        return
    config = MoEPPConfig.from_pretrained(folder)
    found: dict[str, tuple[int, ...]] = {}
    for shard in weight_files(folder):
        found |= {key: tuple(tensor.shape) for key, tensor in read_shard(shard).items()}
    known = list(places(config))
    optional = {place.published for place in known if place.optional}
    require_match(folder, found, {place.published: place.shape for place in known}, optional)


def require_match(
    folder: Path,
    found: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]],
    optional: set[str] | frozenset[str] = frozenset(),
) -> None:
    """Compares a folder's tensors with those that its configuration describes.

    Raises:
        ConversionError: names every tensor that is missing, unexpected or misshapen.
    """
    wrong = {
        "missing": [key for key in expected if key not in found and key not in optional],
        "unexpected": [key for key in found if key not in expected],
        "misshapen": [
            f"{key} (is {list(found[key])}, expected {list(shape)})"
            for key, shape in expected.items()
            if key in found and found[key] != shape
        ],
    }
    said = [f"{len(keys)} {what}: {', '.join(keys)}" for what, keys in wrong.items() if keys]
    if said:
        raise ConversionError(
            f"{folder} does not hold the tensors that its {CONFIG_NAME} describes; {'; '.join(said)}; "
            f"restore the {CONFIG_NAME} that belongs to these weights, or download the weights again"
        )
