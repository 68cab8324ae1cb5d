"""Loss of a model on text: every token of every document is predicted exactly once.

A document that is longer than the window is read in windows that overlap: each moves on by ``stride`` tokens and scores
the tokens that the one before did not reach, so that all but the first have at least ``window - stride`` tokens of
context. Documents don't see each other. The first token is predicted from the token that stands between documents in
training; as in the harness's rolling log-likelihood, the end of a document is not scored, so that bits per byte are
those of the text.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data import encode, utf8_length
from ..errors import ConfigError
from ..model import MoEPPForCausalLM

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_IGNORED = -100


@dataclass(frozen=True)
class TextLoss:
    """A model's loss on some documents. ``a + b`` is that on both."""

    documents: int
    tokens: int
    bytes: int
    """UTF-8."""
    nats: float
    """Summed over the tokens."""

    def __add__(self, other: "TextLoss") -> "TextLoss":
        return TextLoss(
            self.documents + other.documents,
            self.tokens + other.tokens,
            self.bytes + other.bytes,
            self.nats + other.nats,
        )

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss)

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.bytes


def token_losses(model: MoEPPForCausalLM, inputs: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
    """(B, T) nats, in float32, of predicting each target from the inputs up to its place; 0 where the target is -100.

    Args:
        inputs: (B, T) token ids.
        targets: (B, T) token ids: the inputs moved on by one.
        mask: (B, T) False for padding.
    """
    with torch.inference_mode():
        logits = model(inputs, attention_mask=mask, use_cache=False).logits.float()
        return F.cross_entropy(logits.transpose(1, 2), targets, reduction="none", ignore_index=_IGNORED)


def text_loss(
    model: MoEPPForCausalLM,
    tokenizer: "PreTrainedTokenizerBase",
    documents: Sequence[str],
    *,
    window: int | None = None,
    stride: int | None = None,
    batch_size: int = 8,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> TextLoss:
    """Scores every token of the documents; those without any count nothing.

    Args:
        window: tokens that the model sees at once; by default its context.
        stride: tokens that a window moves on by; by default half a window.
        batch_size: windows at a time.
        progress: called with the tokens scored and how many there are.

    Raises:
        ConfigError: ``window`` or ``stride`` cannot work.
        DataError: the tokenizer has no end-of-text token.
    """
    window, stride = check_window(model, window, stride)
    texts = [document for document in documents if document]
    encoded = [torch.from_numpy(encode([text], tokenizer).astype("int64")) for text in texts]
    spans: list[tuple[Tensor, Tensor]] = []
    for ids in encoded:
        tokens, between = ids[:-1], ids[-1:]
        spans += windows(torch.cat([between, tokens]), window, stride)
    spans.sort(key=lambda span: -len(span[0]))  # equal lengths together: little padding
    total = sum(len(ids) - 1 for ids in encoded)
    nats, done = 0.0, 0
    for start in range(0, len(spans), batch_size):
        batch = spans[start : start + batch_size]
        inputs, targets = (
            torch.nn.utils.rnn.pad_sequence([span[side] for span in batch], batch_first=True, padding_value=value)
            for side, value in ((0, 0), (1, _IGNORED))
        )
        lengths = torch.tensor([len(span[0]) for span in batch]).unsqueeze(1)
        mask = torch.arange(inputs.shape[1]) < lengths
        moved = (tensor.to(model.device) for tensor in (inputs, targets, mask))
        nats += float(token_losses(model, *moved).double().sum())
        done += int((targets != _IGNORED).sum())
        progress(done, total)
    return TextLoss(len(texts), total, sum(map(utf8_length, texts)), nats)


def windows(ids: Tensor, window: int, stride: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and targets of each window over one document: targets are scored once each, the others are -100.

    Args:
        ids: (T + 1,) the token before the document and its T tokens.
    """
    scored, last = 0, len(ids) - 1
    while scored < last:
        end = min(last, window if scored == 0 else scored + stride)
        begin = max(0, end - window)
        targets = ids[begin + 1 : end + 1].clone()
        targets[: scored - begin] = _IGNORED
        yield ids[begin:end], targets
        scored = end


def check_window(model: MoEPPForCausalLM, window: int | None, stride: int | None) -> tuple[int, int]:
    """Both with their defaults filled in.

    Raises:
        ConfigError: one of them cannot work.
    """
    context = model.config.max_position_embeddings
    window = context if window is None else window
    if not 1 <= window <= context:
        raise ConfigError(f"--window={window} is outside [1, {context}], the model's context; lower it")
    stride = max(1, window // 2) if stride is None else stride
    if not 1 <= stride <= window:
        raise ConfigError(f"--stride={stride} is outside [1, {window}], the window; lower it")
    return window, stride
