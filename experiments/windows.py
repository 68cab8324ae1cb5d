"""One model's routing of the same tokens in windows of several lengths: what ``context`` asks for.

B windows, S tokens, L layers, K top-k.
"""

import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from moepp.model import MoEPPForCausalLM

SHIFTED, FOREIGN = "shifted", "other text"


class Seen(NamedTuple):
    """What a model did with B windows of S tokens."""

    expert: Tensor
    """(B, S, L, K) the experts of each token, in the order of their ids."""
    ffn: Tensor
    """(B, S, L) how many of them are FFN experts."""
    loss: Tensor
    """(B, S) nats of predicting each token; 0 for a window's first."""

    @classmethod
    def of(cls, model: MoEPPForCausalLM, ids: Tensor, *, first: int = 0) -> "Seen":
        """Sends (B, S) tokens through the model, the first of each window at this position."""
        batch, length = ids.shape
        ids = ids.to(model.device)
        positions = torch.arange(first, first + length, device=ids.device).unsqueeze(0)
        with torch.inference_mode():
            out = model(ids, position_ids=positions, use_cache=False, output_routing=True)
            loss = F.cross_entropy(out.logits[:, :-1].float().transpose(1, 2), ids[:, 1:], reduction="none")
        expert = torch.stack([routing.expert.view(batch, length, -1) for routing in out.routing], dim=2)
        ffn = (expert < model.config.moe.layout().ffn).sum(-1)
        return cls(expert.sort(-1).values.cpu(), ffn.cpu(), F.pad(loss, (1, 0)).cpu())

    def last(self, count: int) -> "Seen":
        """The last so many tokens of each window."""
        return Seen(*(field[:, -count:] for field in self))

    def same_experts(self, other: "Seen") -> list[float]:
        """By layer, the share of tokens with the same set of experts."""
        return (self.expert == other.expert).all(-1).double().mean((0, 1)).tolist()

    def same_count(self, other: "Seen") -> float:
        """The share of tokens and layers with the same number of FFN experts."""
        return float((self.ffn == other.ffn).double().mean())


def study(model: MoEPPForCausalLM, block: Tensor, other: Tensor, lengths: Sequence[int]) -> dict[str, Any]:
    """Everything about one (S,) window; ``other`` is as long and supplies the text that tells nothing."""
    shortest, longest = lengths[0], lengths[-1]
    last, end = shortest // 2, block[-shortest:].unsqueeze(0)
    short, whole = Seen.of(model, block.view(-1, shortest)), Seen.of(model, block.unsqueeze(0))
    base = Seen(*(field[-1:] for field in short)).last(last)
    views = {str(length): Seen.of(model, block[-length:].unsqueeze(0)) for length in lengths[1:-1]}
    views |= {
        str(shortest): base,
        str(longest): whole,
        SHIFTED: Seen.of(model, end, first=longest - shortest),
        FOREIGN: Seen.of(model, torch.cat([other[: longest - shortest].unsqueeze(0), end], dim=1)),
    }
    found: dict[str, Any] = {}
    for name, view in views.items():
        found[name] = {
            "same_experts": view.last(last).same_experts(base),
            "same_count": view.last(last).same_count(base),
            "ffn": float(view.last(last).ffn.double().mean()),
            "loss": float(view.last(last).loss.double().mean()),
        }
    return found | {"positions": _by_position(short, whole, edges(longest, shortest))}


def edges(longest: int, shortest: int) -> list[int]:
    """Bounds of the bins of positions: each twice the one before, from an eighth of the shortest context on."""
    found = [0, shortest // 8]
    while found[-1] < longest:
        found.append(2 * found[-1])
    return found


def _by_position(short: Seen, whole: Seen, bounds: Sequence[int]) -> list[dict[str, float]]:
    """By bin: FFN experts per token and loss in the whole window, and of the same tokens in short ones.

    The first token of each short window has no loss, and is left out.
    """
    length = short.loss.shape[1]
    found = []
    for begin, stop in pairwise(bounds):
        places = [place for place in range(begin, stop) if place % length]
        values = {}
        for name, seen in (("", whole), ("short_", short)):
            values[f"{name}ffn"] = float(seen.ffn.flatten(0, 1)[places].double().mean())
            values[f"{name}loss"] = float(seen.loss.flatten()[places].double().mean())
        found.append(values)
    return found


def mean(nodes: Sequence[Any]) -> Any:
    """Of nodes of the same shape, number by number."""
    first = nodes[0]
    if isinstance(first, Mapping):
        return {key: mean([node[key] for node in nodes]) for key in first}
    if isinstance(first, list):
        return [mean(column) for column in zip(*nodes, strict=True)]
    return statistics.fmean(nodes)
