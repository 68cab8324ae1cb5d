"""A model's routing on text: every choice, or counts of them.

B windows, S tokens of the longest, T tokens in all, L MoE layers, K top-k, D hidden.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import __version__
from ..data import tokenizer_hash
from ..errors import ConfigError
from ..layers import Routing, RoutingStats
from ..model import MoEPPForCausalLM, real_tokens
from .routing_table import Facts, RoutingTable, expert_dtype
from .text import Text, check_window, encode_texts, token_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RoutingEdit = Callable[[Routing], Routing]
_LOGITS = 1 << 24  # elements of logits in memory at once


def collect(
    model: MoEPPForCausalLM,
    tokenizer: "PreTrainedTokenizerBase",
    texts: Iterable[Text],
    *,
    window: int | None = None,
    batch_size: int = 8,
    max_tokens: int | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
    routing_edit: RoutingEdit | Sequence[RoutingEdit | None] | None = None,
    selection_bias: Tensor | None = None,
) -> RoutingTable:
    """Sends texts through a model, in evaluation, and keeps every choice of its routers.

    Each document is cut into windows that don't overlap; neither documents nor windows see each other, and no token
    stands before or between them. The last window of a document may be shorter.

    Args:
        window: tokens that the model sees at once; by default its context.
        batch_size: windows at a time. With a capacity in evaluation, they compete for it.
        max_tokens: of each source the first are taken, in equal parts.
        progress: called with the tokens done and how many there are.
        routing_edit, selection_bias: as in the model's forward.

    Raises:
        ConfigError: the model has no MoE++ layers, or the window is longer than its context.
        DataError: there is no text, or no document as long as the window that was asked for.
    """
    if not isinstance(model, MoEPPForCausalLM):
        raise ConfigError(f"analyze needs MoE++ layers, and {type(model).__name__} has none; give a moepp model")
    encoded = encode_texts(texts, tokenizer, max_tokens)
    window = check_window(encoded, window, model.config.max_position_embeddings)
    ids = np.concatenate(encoded.ids)
    spans = encoded.spans(window)
    arrays = _arrays(model, len(ids))
    if selection_bias is not None:
        selection_bias = selection_bias.to(model.device)
    by_length = sorted(spans, key=lambda span: span[0] - span[1])  # equal lengths together: little padding
    done = 0
    with _evaluating(model):
        for start in range(0, len(spans), batch_size):
            batch = by_length[start : start + batch_size]
            found = _route(model, [ids[first:end] for first, end in batch], routing_edit, selection_bias)
            for row, (first, end) in enumerate(batch):
                for name, array in arrays.items():
                    array[first:end] = found[name][row, : end - first]
            done += sum(end - first for first, end in batch)
            progress(done, len(ids))
    config = model.config
    return RoutingTable(
        layout=config.moe.layout(),
        token=ids,
        position=np.concatenate([np.arange(end - first, dtype=np.int32) for first, end in spans]),
        document=np.repeat(np.arange(len(encoded.ids), dtype=np.int32), [*map(len, encoded.ids)]),
        vocabulary=token_texts(tokenizer, np.unique(ids).tolist()),
        documents=encoded.documents,
        facts=Facts(
            model=Path(model.name_or_path or "").name,
            fingerprint="",
            tau=config.tau,
            gating_residual=config.gating_residual,
            dtype=str(model.dtype).removeprefix("torch."),
            window=window,
            edited=routing_edit is not None or selection_bias is not None,
            tokenizer_hash=tokenizer_hash(tokenizer),
            text_hash=encoded.hash,
            versions={"moepp": __version__, "torch": torch.__version__, "transformers": version("transformers")},
            command="",
            shared_experts=config.num_shared_experts,
        ),
        **arrays,
    )


def collect_stats(model: MoEPPForCausalLM, batches: Iterable[Mapping[str, Tensor]]) -> list[RoutingStats]:
    """Each layer's counts over all batches, in evaluation.

    Args:
        batches: keyword arguments of the model's forward, without labels.
    """
    totals: list[RoutingStats] = []
    with _evaluating(model):
        for batch in batches:
            mask = real_tokens(batch.get("attention_mask"), batch["input_ids"].shape[1])
            routings = model(**batch, output_routing=True, use_cache=False).routing
            counts = [RoutingStats.of(routing, mask=mask) for routing in routings]
            totals = [a + b for a, b in zip(totals, counts, strict=True)] if totals else counts
    return totals


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Without gradients, and back into the model's mode afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)


def _arrays(model: MoEPPForCausalLM, tokens: int) -> dict[str, np.ndarray]:
    """Room for what :func:`_route` finds, once for all tokens."""
    config = model.config
    choices = (tokens, config.num_hidden_layers, config.top_k)
    return {
        "expert": np.empty(choices, expert_dtype(config.moe.layout())),
        "score": np.empty(choices, np.float32),
        "weight": np.empty(choices, np.float32),
        "kept": np.empty(choices, np.bool_),
        "entropy": np.empty(choices[:2], np.float32),
        "loss": np.empty(tokens, np.float32),
    }


def _route(
    model: MoEPPForCausalLM,
    windows: Sequence[np.ndarray],
    routing_edit: RoutingEdit | Sequence[RoutingEdit | None] | None,
    selection_bias: Tensor | None,
) -> dict[str, np.ndarray]:
    """One batch: arrays of (B, S, …), padding included. Nothing waits for the device before the results are copied."""
    lengths = torch.tensor([*map(len, windows)])
    rows = [torch.from_numpy(ids.astype(np.int64)) for ids in windows]
    inputs = nn.utils.rnn.pad_sequence(rows, batch_first=True).to(model.device)
    size = inputs.shape
    mask = None
    if int(lengths.min()) < size[1]:
        mask = (torch.arange(size[1]) < lengths.unsqueeze(1)).to(model.device)
    outputs = model.model(
        inputs,
        attention_mask=mask,
        use_cache=False,
        output_routing=True,
        routing_edit=routing_edit,
        selection_bias=selection_bias,
    )
    routing: Sequence[Routing] = outputs.routing
    experts = model.config.moe.layout().num_experts
    expert, weight, kept = (
        torch.stack([getattr(layer, name) for layer in routing], dim=1) for name in ("expert", "weight", "kept")
    )
    score = torch.stack([layer.probs.gather(-1, layer.expert.clamp(0, experts - 1)) for layer in routing], dim=1)
    somebody = (expert >= 0) & (expert < experts)
    found = {
        "expert": expert.where(somebody, experts).to(torch.int32),
        "score": score.float().where(somebody, 0.0),
        "weight": weight.float(),
        "kept": kept & somebody,
        "entropy": torch.stack([torch.special.entr(layer.probs).sum(dim=-1) for layer in routing], dim=1).float(),
        "loss": _losses(model, outputs.last_hidden_state, inputs),
    }
    return {name: tensor.reshape(*size, *tensor.shape[1:]).cpu().numpy() for name, tensor in found.items()}


def _losses(model: MoEPPForCausalLM, hidden: Tensor, inputs: Tensor) -> Tensor:
    """(B · S,) nats of predicting each token of each window, NaN for the first; a few tokens' logits at a time.

    Args:
        hidden: (B, S, D).
        inputs: (B, S).
    """
    before, targets = hidden[:, :-1].flatten(0, 1), inputs[:, 1:].flatten()
    rows = max(1, _LOGITS // model.config.vocab_size)
    pieces = [
        F.cross_entropy(model.lm_head(some).float(), wanted, reduction="none")
        for some, wanted in zip(before.split(rows), targets.split(rows), strict=True)
    ]
    return F.pad(torch.cat(pieces).view_as(inputs[:, 1:]), (1, 0), value=torch.nan).flatten()
