"""The model's configuration: transformers' usual names, and the fields of :class:`moepp.MoEConfig` under theirs."""

import dataclasses
import os
from pathlib import Path
from typing import Any, Literal, get_args

from transformers import PreTrainedConfig

from ..config import Combine, DropPolicy, Gate, MoEConfig, is_int, is_number
from ..errors import ConfigError, nearest
from . import released_config, remote_code

BalanceScope = Literal["micro", "global"]
MOE_FIELDS = tuple(field.name for field in dataclasses.fields(MoEConfig))


class MoEPPConfig(PreTrainedConfig):
    """A LLaMA-style decoder whose every feed-forward network is a MoE++ layer.

    The fields from ``num_ffn_experts`` to ``residual_init_std`` are :class:`moepp.MoEConfig`'s,
    ``router_aux_loss_coef`` is beta of Eq. 9, and ``balance_scope`` says over which tokens Eq. 7 takes f:
    ``"micro"``, those of one forward pass, or ``"global"``, those of all processes and accumulation steps, see
    :class:`moepp.model.balance.GlobalCounts`.
    """

    model_type = "moepp"
    keys_to_ignore_at_inference = [  # noqa: RUF012 - Trainer adds a list to it
        *("past_key_values", "lm_loss", "task_loss", "balance_loss", "layer_balance_loss", "routing", "routing_stats"),
    ]
    attribute_map = {  # noqa: RUF012 - transformers' own form
        "num_experts_per_tok": "top_k",
        "num_local_experts": "num_ffn_experts",  # where other libraries look for the number of experts that compute
    }
    default_theta = 10000.0
    # Routers, zero-computation and shared experts are on every process whole: each adds their outputs once.
    base_model_tp_plan = {  # noqa: RUF012 - transformers' own form
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.mlp.experts.gate_up_proj": "packed_colwise",
        "layers.*.mlp.experts.down_proj": "rowwise",
        "layers.*.mlp.experts": "moe_tp_experts",
    }
    base_model_ep_plan = {  # noqa: RUF012  # pyright: ignore[reportAssignmentType]
        "layers.*.mlp.experts.gate_up_proj": "grouped_gemm",
        "layers.*.mlp.experts.down_proj": "grouped_gemm",
        "layers.*.mlp.experts": "ep_dispatch_experts",
    }
    base_model_fsdp_plan = {  # noqa: RUF012
        "embed_tokens": "free_full_weight",
        "layers.*": "free_full_weight",
        "norm": "keep_full_weight",
    }

    vocab_size: int = 32000
    hidden_size: int = 768
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = False
    rope_parameters: dict[str, Any] | None = None
    attention_bias: bool = False
    attention_dropout: float = 0.0

    num_ffn_experts: int = 8
    num_constant_experts: int = 2
    num_copy_experts: int = 1
    num_zero_experts: int = 1
    num_shared_experts: int = 0
    top_k: int = 2
    tau: float = 0.75
    capacity_factor: float | None = 1.1
    eval_capacity_factor: float | None = None
    drop_policy: DropPolicy = "probability"
    gating_residual: bool = True
    gate: Gate = "linear"
    logits_std: float | None = None
    combine: Combine = "probabilities"
    input_scale: float = 1.0
    constant_init_std: float = 0.02
    residual_init_std: float = 0.0
    router_aux_loss_coef: float = 0.01
    balance_scope: BalanceScope = "micro"

    def __post_init__(self, **kwargs: Any) -> None:
        self._require_counts("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        self._require_counts("num_key_value_heads")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"model.num_key_value_heads={self.num_key_value_heads} does not divide "
                f"model.num_attention_heads={self.num_attention_heads}; choose a divisor"
            )
        if self.head_dim is None:
            if self.hidden_size % self.num_attention_heads:
                raise ConfigError(
                    f"model.num_attention_heads={self.num_attention_heads} does not divide "
                    f"model.hidden_size={self.hidden_size}; choose a divisor or set model.head_dim"
                )
            self.head_dim = self.hidden_size // self.num_attention_heads
        self._require_counts("head_dim")
        if self.head_dim % 2:
            raise ConfigError(f"model.head_dim={self.head_dim} must be even for rotary position embeddings")
        if self.hidden_act != "silu":
            raise ConfigError(
                f"model.hidden_act={self.hidden_act!r} is not supported; MoE++ experts are SwiGLU: 'silu'"
            )
        if not is_number(self.router_aux_loss_coef) or self.router_aux_loss_coef < 0:
            raise ConfigError(f"model.router_aux_loss_coef={self.router_aux_loss_coef!r} must be a number >= 0")
        if self.balance_scope not in (scopes := get_args(BalanceScope)):
            raise ConfigError(
                f"model.balance_scope={self.balance_scope!r} does not exist; {nearest(str(self.balance_scope), scopes)}"
            )
        super().__post_init__(**kwargs)
        # After transformers has set the fields that came under another name, such as num_experts_per_tok.
        _ = self.moe  # raises ConfigError for everything that one layer cannot be

    def _require_counts(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if not is_int(value) or value < 1:
                raise ConfigError(f"model.{name}={value!r} must be an integer >= 1")

    @property
    def moe(self) -> MoEConfig:
        """One layer of this model."""
        return MoEConfig(**{name: getattr(self, name) for name in MOE_FIELDS})

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """transformers'; the published checkpoint's fields come out as ours."""
        fields, unused = super().get_config_dict(*args, **kwargs)
        return (released_config.from_published(fields) if released_config.is_published(fields) else fields), unused

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoConfig") -> None:
        """Does nothing: saving would copy our modules, and :mod:`moepp.model.remote_code` writes what is needed."""

    def save_pretrained(self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any) -> None:
        """transformers', with the two files that let ``trust_remote_code=True`` load the folder."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        remote_code.write(folder)
        self.auto_map = remote_code.AUTO_MAP
        super().save_pretrained(save_directory, push_to_hub, **kwargs)

    def vanilla(self) -> "MoEPPConfig":
        """The paper's baseline: the same model with the FFN experts alone, see :meth:`moepp.MoEConfig.vanilla`."""
        twin = type(self).from_dict(self.to_dict())
        for name, value in dataclasses.asdict(self.moe.vanilla()).items():
            setattr(twin, name, value)
        return twin


class PublishedConfig(MoEPPConfig):
    """What AutoConfig looks up for the published checkpoint's ``model_type``; it makes a :class:`MoEPPConfig`."""

    model_type = released_config.MODEL_TYPE

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        return MoEPPConfig.from_dict(released_config.from_published(config_dict), **kwargs)
