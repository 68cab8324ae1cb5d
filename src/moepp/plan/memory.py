"""Memory of the GPU that holds the most.

Weights, gradients and optimizer are counted, exactly. The rest is a model of what autograd keeps: the tensors that this
package's layers save for the backward pass, with the grouped kernel, which is a GPU's default. The fullest moment is
taken to be in the backward pass, either at the loss or in one layer.

T tokens of a micro-batch, D hidden, F intermediate, E experts, K top-k, H heads, R rows of FFN experts, V vocabulary.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from ..model import MoEPPConfig
from .exchange import exchange
from .layout import Batch, Sizes
from .sharding import Unit

FLOAT32 = 4
EXACT = ("weights", "gradients", "optimizer", "accumulated")
"""The fields of :class:`Memory` that are counted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes."""

    weights: int
    gradients: int
    optimizer: int
    """AdamW's two moments, and a count of steps for each parameter."""
    accumulated: int
    """Whole gradients that wait for the step's last micro-batch; see :mod:`moepp.plan.traffic`."""
    gathered: int
    """Units of FSDP while they are whole."""
    activations: int
    """What all layers keep for the backward pass, and what one of them needs in it."""
    logits: int
    """What the loss needs beyond what a layer needs at another moment."""
    exchange: int
    """Rows on their way between processes."""

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in dataclasses.fields(self))


def memory(config: MoEPPConfig, units: Sequence[Unit], tensors: int, batch: Batch, sizes: Sizes) -> Memory:
    """What one process holds at its fullest.

    Args:
        tensors: parameters of the model, as tensors.
    """
    local = FLOAT32 * sum(unit.local for unit in units)
    kept, working = layer_activations(config, units, batch, sizes)
    if not batch.checkpointing:
        kept, working = working, 0
    # Gradients of a layer: of the experts' rows on their way through SwiGLU, and of a few states of the tokens.
    rows, tokens = _expert_rows(config, batch, sizes), batch.tokens
    rows += tokens * config.num_shared_experts
    working += rows * 3 * config.intermediate_size * _width(batch) + 4 * tokens * config.hidden_size * FLOAT32
    return Memory(
        weights=local,
        gradients=local,
        optimizer=2 * local + FLOAT32 * tensors,
        accumulated=FLOAT32 * sum(unit.gathered for unit in units) if accumulates_whole(batch, sizes) else 0,
        gathered=gathered(units) if sizes.gpus > 1 else 0,
        activations=round(config.num_hidden_layers * kept + working),
        logits=round(max(0, head_activations(config, batch) - working)),
        exchange=round(exchange_buffers(config, batch, sizes)),
    )


def gathered(units: Sequence[Unit]) -> int:
    """In the backward pass: a layer and its gradients, the layer before it, and the buffers that the two travel in."""
    layers: dict[str, list[Unit]] = {}
    for unit in units:
        layers.setdefault(unit.name.removesuffix(".mlp.experts"), []).append(unit)
    largest = max((_while_whole(layer) for layer in layers.values()), default=0)
    return FLOAT32 * (largest + sum(unit.gathered for unit in units if unit.kept))


def accumulates_whole(batch: Batch, sizes: Sizes) -> bool:
    """Whether gradients stay whole until the last micro-batch of a step, as transformers' Trainer has it."""
    return sizes.gpus > 1 and sizes.replicate == 1 and batch.micro_batches > sizes.gpus


def layer_activations(config: MoEPPConfig, units: Sequence[Unit], batch: Batch, sizes: Sizes) -> tuple[float, float]:
    """What one layer saves with activation checkpointing and without, or when it runs again.

    Under autocast it saves its weights, too, in bfloat16, however FSDP keeps them.
    """
    layout, hidden, heads = config.moe.layout(), config.hidden_size, config.num_attention_heads
    width = _width(batch)
    # The residual stream, norms and the experts' and the router's input stay float32.
    exact = (6 if layout.num_zero_computation else 5) * hidden + 2 * layout.num_experts + 4 * config.top_k + heads + 3
    products = (7 if batch.bf16 else 4) * hidden  # q, k, v and attention's output; under autocast also what they read
    token = exact * FLOAT32 + products * width + 18 * config.top_k
    row = 2 * hidden * width + hidden * FLOAT32 + 4 * config.intermediate_size * width + 16
    if config.num_shared_experts:  # one more row for every token, so many times as wide; and its result
        inner = config.num_shared_experts * config.intermediate_size
        token += 2 * hidden * width + hidden * FLOAT32 + 4 * inner * width + 16
    weights = 0
    if batch.bf16:
        weights = 2 * sum(unit.gathered for unit in units if unit.name.startswith("model.layers.0"))
    return (
        batch.tokens * (hidden + layout.num_experts) * FLOAT32,
        batch.tokens * token + _expert_rows(config, batch, sizes) * row + weights,
    )


def head_activations(config: MoEPPConfig, batch: Batch) -> float:
    """Three float32 tensors of all logits: log-probabilities, their gradient and the logits' gradient."""
    states = config.hidden_size * (2 * FLOAT32 + _width(batch))
    return batch.tokens * (3 * FLOAT32 * config.vocab_size + states)


def exchange_buffers(config: MoEPPConfig, batch: Batch, sizes: Sizes) -> float:
    """Rows sent and received, there and back."""
    if sizes.ep == 1:
        return 0.0
    layer = exchange(config, batch, sizes)
    return 2 * layer.rows * layer.row_bytes


def _expert_rows(config: MoEPPConfig, batch: Batch, sizes: Sizes) -> float:
    """With expert parallelism those received; else the kernel makes room for all assignments, not knowing how many."""
    return batch.tokens * config.top_k if sizes.ep == 1 else exchange(config, batch, sizes).rows


def _while_whole(layer: Sequence[Unit]) -> int:
    """A group of one copies its weights, too, but sends nothing ahead."""
    return sum(3 * unit.gathered + 2 * unit.padded if unit.group_size > 1 else 2 * unit.gathered for unit in layer)


def _width(batch: Batch) -> int:
    return 2 if batch.bf16 else FLOAT32
