"""The paper's models (Table 2), their vanilla twins, and a tiny one for trying things."""

from collections.abc import Callable
from functools import partial
from typing import Any

from ..errors import ConfigError, nearest
from .configuration_moepp import MoEPPConfig


def _paper(*, ffn: int, constant: int = 2, large: bool = False, vanilla: bool = False, **overrides: Any) -> MoEPPConfig:
    size = (
        {"hidden_size": 1536, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
        if large
        else {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12}
    )
    fields = {
        **size,
        "vocab_size": 65536,
        "max_position_embeddings": 2048,
        "initializer_range": 0.01,  # of the released checkpoint; the paper names none
        "num_ffn_experts": ffn,
        "num_constant_experts": constant,
    }
    return _build(fields | overrides, vanilla)


def _debug(*, vanilla: bool = False, **overrides: Any) -> MoEPPConfig:
    fields = {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "num_ffn_experts": 4,
    }
    return _build(fields | overrides, vanilla)


def _build(fields: dict[str, Any], vanilla: bool) -> MoEPPConfig:
    config = MoEPPConfig(**fields)
    return config.vanilla() if vanilla else config


PRESETS: dict[str, Callable[..., MoEPPConfig]] = {
    "moepp-0.6b-8+4": partial(_paper, ffn=8),
    "moepp-1b-16+4": partial(_paper, ffn=16),
    "moepp-2b-32+8": partial(_paper, ffn=32, constant=6),
    "moepp-7b-16+4": partial(_paper, ffn=16, large=True),
    "moe-0.6b-8": partial(_paper, ffn=8, vanilla=True),
    "moe-1b-16": partial(_paper, ffn=16, vanilla=True),
    "moe-2b-32": partial(_paper, ffn=32, constant=6, vanilla=True),
    "moe-7b-16": partial(_paper, ffn=16, large=True, vanilla=True),
    "debug": _debug,
}


def preset(name: str, **overrides: Any) -> MoEPPConfig:
    """A new configuration of that name, with fields overridden; ``vanilla=True`` gives the twin of any of them.

    Raises:
        ConfigError: no such preset.
    """
    if name not in PRESETS:
        raise ConfigError(f"model.preset={name!r} does not exist; {nearest(name, PRESETS)}")
    return PRESETS[name](**overrides)
