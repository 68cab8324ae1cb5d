"""What a training run logs about its routing, summed between two logging steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor

from ..config import EXPERT_TYPES, ExpertLayout
from ..layers import RoutingStats
from .distributed import stacked, total


@dataclass
class Window:
    """Sums since the last logging step."""

    lm_loss: float | Tensor = 0.0
    """Each forward pass adds its share of its step's loss, so a step adds its mean."""
    balance_loss: float | Tensor = 0.0
    """(layers,), likewise."""
    stats: list[RoutingStats] = field(default_factory=list)
    """One per layer."""
    steps: int = 0
    kept: list[Tensor] = field(default_factory=list)
    """(layers, experts) kept assignments of each forward pass, of this process's tokens."""

    def add(self, lm_loss: Tensor, layer_balance_loss: Tensor, share: float, stats: Sequence[RoutingStats]) -> None:
        """Adds one forward pass; ``share`` is its share of the step's balance loss."""
        self.lm_loss = self.lm_loss + lm_loss.detach()
        self.balance_loss = self.balance_loss + share * layer_balance_loss.detach()
        counts = [layer.detach() for layer in stats]
        self.kept.append(torch.stack([layer.kept for layer in counts]))
        self.stats = [a + b for a, b in zip(self.stats, counts, strict=True)] if self.stats else counts

    def gather(self) -> Tensor:
        """Sums over processes, and fetches all in one transfer: each one from a GPU waits for all that was asked of it.

        All processes must come here together.

        Returns:
            (processes, forward passes times layers, experts) kept assignments of each process's own tokens.
        """
        sums = [torch.as_tensor(self.lm_loss), torch.as_tensor(self.balance_loss), *chain.from_iterable(self.stats)]
        kept_by_rank, lm_loss, balance_loss, *counts = on_cpu([stacked(torch.cat(self.kept)), *total(sums)])
        self.lm_loss, self.balance_loss = lm_loss, balance_loss
        width = len(RoutingStats._fields)
        self.stats = [RoutingStats(*counts[i : i + width]) for i in range(0, len(counts), width)]
        return kept_by_rank

    def metrics(self, layout: ExpertLayout, seconds: float) -> dict[str, float]:
        """The numbers to log, per step or over all tokens of the window, whose steps took so many seconds."""
        steps = max(self.steps, 1)
        balance = torch.as_tensor(self.balance_loss) / steps
        logs = {
            "lm_loss": float(self.lm_loss) / steps,
            "balance_loss": float(balance.sum()),
            "tokens_per_second": float(self.stats[0].tokens) / seconds if seconds else float("nan"),
        }
        logs |= routing_metrics(self.stats, layout)
        logs |= {f"layer_{i}/balance_loss": float(value) for i, value in enumerate(balance)}
        return logs


def rank_imbalance(kept_by_rank: Tensor, ffn: int, ep_size: int) -> float:
    """FFN rows of the busiest process over their mean, summed over layers and forward passes.

    Each of them waits for its busiest process.

    Args:
        kept_by_rank: (processes, layers, experts) kept assignments of each process's tokens.
        ffn: FFN experts, which come first.
        ep_size: neighbouring processes that share the experts; 1 computes its own tokens' rows.
    """
    ranks, layers, _ = kept_by_rank.shape
    group = kept_by_rank[:, :, :ffn].view(ranks // ep_size, ep_size, layers, ffn)
    if ep_size > 1:  # a process computes its experts' rows for all tokens of its group
        owned = group.sum(dim=1).view(-1, layers, ep_size, ffn // ep_size)
        rows = owned.sum(dim=-1).transpose(1, 2).reshape(ranks, layers)
    else:
        rows = group.sum(dim=-1).view(ranks, layers)
    return float(rows.amax(dim=0).sum() / rows.double().mean(dim=0).sum().clamp_min(1.0))


def on_cpu(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies of tensors of one device, whatever their dtypes, in one transfer of their bytes."""
    flat = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in tensors]
    fetched = torch.cat(flat).cpu().split([len(part) for part in flat])
    # clone: a view of bytes as numbers must begin at a multiple of their size.
    return [part.clone().view(like.dtype).view(like.shape) for part, like in zip(fetched, tensors, strict=True)]


def routing_metrics(stats: list[RoutingStats], layout: ExpertLayout) -> dict[str, float]:
    """Routed FFN experts per token (shared ones are not counted), shares, imbalance and drops.

    Of the whole model, and per layer what differs by layer.
    """
    shares = [layer.shares(layout) for layer in stats]
    dropped = [layer.dropped(layout) for layer in stats]
    per_token = [layer.ffn_per_token(layout) for layer in stats]
    imbalance = [layer.ffn_imbalance(layout) for layer in stats]
    logs = {"ffn_per_token": _mean(per_token), "load_imbalance": max(imbalance)}
    for kind in EXPERT_TYPES:
        if layout.count(kind):
            logs[f"share/{kind}"] = _mean([layer[kind] for layer in shares])
            logs[f"dropped/{kind}"] = _mean([layer[kind] for layer in dropped])
    for index in range(len(stats)):
        logs[f"layer_{index}/ffn_per_token"] = per_token[index]
        logs[f"layer_{index}/ffn_share"] = shares[index]["ffn"]
        logs[f"layer_{index}/load_imbalance"] = imbalance[index]
    return logs


def validation_sources(metrics: Mapping[str, float]) -> list[str]:
    """The sources in a validation's metrics, which are ``eval_<source>_loss`` and the mixture's ``eval_loss``."""
    losses = [key for key in metrics if key.endswith("_loss") and key != "eval_loss"]
    return [key.removeprefix("eval_").removesuffix("_loss") for key in losses if key.startswith("eval_")]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
