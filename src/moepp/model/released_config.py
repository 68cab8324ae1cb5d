"""``config.json`` of the checkpoint that the paper's authors published, and ours: one function each way.

The two differ by named fields of :class:`moepp.MoEConfig`, never by a compatibility flag. A flag that the published
``config.json`` lacks has the published class's default, which for three of them is the opposite of what the released
model uses: they are always read, never assumed.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..config import is_int, is_number
from ..errors import ConversionError

if TYPE_CHECKING:
    from .configuration_moepp import MoEPPConfig

MODEL_TYPE = "MoE++"
ARCHITECTURE = "MoeForCausalLM"

# The published class's defaults.
FLAGS: dict[str, Any] = {
    "moe_2layer_gate": True,
    "moe_use_logits_norm": False,
    "moe_gate_norm_std": 1.0,
    "moe_use_mixtral_gating": False,
    "moe_feature_no_mul_topk": False,
    "moe_expert_interval": 1,
    "rope_theta": 10000.0,
    "rope_scaling": None,
}
# Every layer of the format has these, whatever its number of FFN experts; the published class's loss, router and
# attention know nothing else.
FIXED: dict[str, Any] = {
    "num_constant_experts": 2,
    "num_copy_experts": 1,
    "num_zero_experts": 1,
    "num_shared_experts": 0,
    "top_k": 2,
    "gating_residual": True,
    "eval_capacity_factor": None,
    "attention_bias": False,
}
_REQUIRED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_SAME = (
    *_REQUIRED,
    *("num_key_value_heads", "max_position_embeddings", "initializer_range", "rms_norm_eps", "use_cache"),
    *("pad_token_id", "bos_token_id", "eos_token_id", "tie_word_embeddings"),
)


def is_published(fields: object) -> bool:
    """Whether this is what the published ``config.json`` holds."""
    return isinstance(fields, Mapping) and fields.get("model_type") == MODEL_TYPE


def from_published(published: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of our configuration that give the published model's function.

    Raises:
        ConversionError: a field is missing, or has a value for which the published code does something else.
    """
    architectures = published.get("architectures") or [ARCHITECTURE]
    if not is_published(published) or architectures != [ARCHITECTURE]:
        raise ConversionError(
            f"config.json: model_type={published.get('model_type')!r} with architectures={architectures!r} is not the "
            f"published MoE++ model, {MODEL_TYPE!r} with {[ARCHITECTURE]!r}; give a folder that holds that one"
        )
    if missing := [name for name in (*_REQUIRED, "num_experts") if published.get(name) is None]:
        raise ConversionError(f"config.json lacks {', '.join(missing)}; copy or download it again")
    flags = {name: published.get(name, default) for name, default in FLAGS.items()}
    if flags["moe_expert_interval"] != 1:
        raise ConversionError(
            f"config.json: moe_expert_interval={flags['moe_expert_interval']!r} is not supported, and crashes in the "
            "published code too; only 1, an MoE in every layer, is"
        )
    mixtral = _boolean(flags, "moe_use_mixtral_gating")
    doubled = not _boolean(flags, "moe_feature_no_mul_topk") and not mixtral
    fields = {name: published[name] for name in _SAME if name in published}
    dtype = published.get("torch_dtype") or published.get("dtype")
    return fields | {
        "architectures": ["MoEPPForCausalLM"],
        **({"dtype": dtype} if dtype else {}),
        "rope_parameters": {"rope_type": "default", "rope_theta": _rope_base(flags)},
        "num_ffn_experts": _number_of_experts(published) - 4,
        **FIXED,
        "gate": "tanh_mlp" if _boolean(flags, "moe_2layer_gate") else "linear",
        "logits_std": _gate_norm_std(flags) if _boolean(flags, "moe_use_logits_norm") else None,
        "combine": "softmax_topk" if mixtral else "renormalize_nonzero",
        "input_scale": 2.0 if doubled else 1.0,
        "constant_init_std": 1.0,
    }


def to_published(config: "MoEPPConfig", kept: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The published ``config.json`` of a model with this configuration.

    Args:
        kept: the published configuration that it was translated from; as long as nothing was changed since, it comes
            back as it was, and otherwise it provides what has no place in ours.

    Raises:
        ConversionError: a field has a value that the format cannot express.
    """
    _require_expressible(config)
    dtype = str(config.dtype).removeprefix("torch.") if config.dtype is not None else "float32"
    published = {name: getattr(config, name) for name in _SAME} | {
        "architectures": [ARCHITECTURE],
        "model_type": MODEL_TYPE,
        "torch_dtype": dtype,
        "hidden_act": "silu",
        "num_experts": [config.num_ffn_experts + 4],
        "moe_expert_interval": 1,
        "moe_2layer_gate": config.gate == "tanh_mlp",
        "moe_use_logits_norm": config.logits_std is not None,
        "moe_gate_norm_std": 1.0 if config.logits_std is None else config.logits_std,
        "moe_use_mixtral_gating": config.combine == "softmax_topk",
        "moe_feature_no_mul_topk": config.input_scale == 1.0,
        "rope_theta": (config.rope_parameters or {}).get("rope_theta", FLAGS["rope_theta"]),
        "rope_scaling": None,
    }
    if kept is None:
        return published
    unchanged = to_published(type(config).from_dict(from_published(kept))) == published
    return dict(kept) if unchanged else dict(kept) | published


def _require_expressible(config: "MoEPPConfig") -> None:
    heads = config.hidden_size // config.num_attention_heads
    allowed: dict[str, tuple[Any, ...]] = {
        **{name: (value,) for name, value in FIXED.items()},
        "combine": ("renormalize_nonzero", "softmax_topk"),
        "input_scale": (1.0, 2.0) if config.combine == "renormalize_nonzero" else (1.0,),
        "head_dim": (heads,),
    }
    for name, values in allowed.items():
        if getattr(config, name) not in values:
            choices = " or ".join(repr(value) for value in values)
            raise ConversionError(
                f"model.{name}={getattr(config, name)!r} cannot be expressed in the published format, which has "
                f"{choices}; keep this model in moepp's own format"
            )
    rope = (config.rope_parameters or {}).get("rope_type", "default")
    if rope != "default":
        raise ConversionError(
            f"model.rope_parameters.rope_type={rope!r} cannot be expressed in the published format, which has "
            "'default'; keep this model in moepp's own format"
        )


def _boolean(flags: Mapping[str, Any], name: str) -> bool:
    if not isinstance(flags[name], bool):
        raise ConversionError(f"config.json: {name}={flags[name]!r} must be true or false")
    return flags[name]


def _gate_norm_std(flags: Mapping[str, Any]) -> float:
    value = flags["moe_gate_norm_std"]
    if not is_number(value) or value <= 0:
        raise ConversionError(f"config.json: moe_gate_norm_std={value!r} must be a number > 0")
    return float(value)


def _number_of_experts(published: Mapping[str, Any]) -> int:
    value = published["num_experts"]
    one = set(value) if isinstance(value, list) and all(is_int(number) for number in value) else set()
    if len(one) != 1 or min(one) < 5 or len(value) not in (1, published["num_hidden_layers"]):
        raise ConversionError(
            f"config.json: num_experts={value!r} must be a list of one number >= 5, the experts of every layer: "
            "FFN experts, 2 constant, 1 copy and 1 zero"
        )
    return one.pop()


def _rope_base(flags: Mapping[str, Any]) -> float:
    base, scaling = flags["rope_theta"], flags["rope_scaling"]
    if not is_number(base) or base <= 0:
        raise ConversionError(f"config.json: rope_theta={base!r} must be a number > 0")
    if scaling is None:
        return base
    kind, factor = (scaling.get("type"), scaling.get("factor")) if isinstance(scaling, dict) else (None, None)
    if kind != "ntk" or factor is None or not is_number(factor) or factor <= 0:
        raise ConversionError(
            f"config.json: rope_scaling={scaling!r} is not supported; only null and {{'type': 'ntk', 'factor': …}}, "
            "which multiplies rope_theta, are"
        )
    return base * factor
