"""Tiny models with known weights. As in ``tests/factory.py``, no test relies on how a fresh model is initialised."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from moepp.model import MoEPPConfig, MoEPPForCausalLM

PAD = 0
VOCAB = 97


def tiny_config(**changes: object) -> MoEPPConfig:
    """Three layers, grouped-query heads, all types of expert, dropless, and no end of sequence to stop generation."""
    fields: dict[str, object] = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "num_ffn_experts": 4,
        "capacity_factor": None,
        "pad_token_id": PAD,
        "eos_token_id": None,
    }
    return MoEPPConfig(**(fields | changes))


def fill(model: torch.nn.Module, *, seed: int = 0) -> None:
    """Gives every parameter normal values, drawn in order from one generator.

    Matrices keep the size of what they multiply, norms stay near 1, and routers get logits of a useful spread.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if name.endswith("norm.weight"):
                values = 1 + 0.2 * values
            elif "embed_tokens" not in name and parameter.dim() > 1 and not name.endswith(".constant"):
                values = values * parameter.shape[-1] ** -0.5
            parameter.copy_(2 * values if name.endswith(("router.weight", "gate.weight")) else values)


def tiny_model(config: MoEPPConfig | None = None, *, seed: int = 0, **changes: object) -> MoEPPForCausalLM:
    """A filled model in evaluation mode."""
    model = MoEPPForCausalLM(tiny_config(**changes) if config is None else config).eval()
    fill(model, seed=seed)
    return model


def tokens(batch: int, length: int, *, seed: int = 0) -> Tensor:
    """Random token ids without the padding's."""
    return torch.randint(PAD + 1, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def left_padded(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows of different lengths as one batch, padded on the left, and its attention mask."""
    width = max(len(row) for row in rows)
    ids = torch.stack([torch.nn.functional.pad(row, (width - len(row), 0), value=PAD) for row in rows])
    return ids, (ids != PAD).long()


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    """Every parameter's gradient, zeros where autograd left none, and clears them."""
    found = {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return found


def counted(counter: Counter[str], name: str, real: Callable[..., Any]) -> Callable[..., Any]:
    """``real``, whose calls are counted under ``name``."""

    def run(*args: Any, **kwargs: Any) -> Any:
        counter[name] += 1
        return real(*args, **kwargs)

    return run
