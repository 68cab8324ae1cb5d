"""Tiny random checkpoints in the published format, written from its description."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .released_oracle import DEFAULTS

FIXTURE = Path(__file__).parent / "fixtures" / "released-tiny"
SEED = 4  # of 20, the one whose routing choices are the clearest


def published_config(**changes: Any) -> dict[str, Any]:
    """Two layers, three FFN experts, grouped-query heads, the released model's flags; a change to None removes it."""
    fields = {
        "architectures": ["MoeForCausalLM"],
        "model_type": "MoE++",
        "vocab_size": 31,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "hidden_act": "silu",
        "hidden_size": 16,
        "intermediate_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_experts": [7],
        "moe_expert_interval": 1,
        "max_position_embeddings": 64,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-6,
        "initializer_range": 0.01,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "moe_use_mixtral_gating": False,
        "moe_2layer_gate": False,
        "moe_use_logits_norm": True,
        "moe_gate_norm_std": 1.0,
        "moe_feature_no_mul_topk": True,
    } | changes
    return {name: value for name, value in fields.items() if value is not None}


def published_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor."""
    c = DEFAULTS | dict(config)
    vocab, hidden, inner, (experts,) = c["vocab_size"], c["hidden_size"], c["intermediate_size"], c["num_experts"]
    kv = hidden // c["num_attention_heads"] * c["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for layer in range(c["num_hidden_layers"]):
        own = f"model.layers.{layer}."
        for name, rows in (("q", hidden), ("k", kv), ("v", kv), ("o", hidden)):
            shapes[f"{own}self_attn.{name}_proj.weight"] = (rows, hidden)
        if c["moe_2layer_gate"]:
            shapes[own + "mlp.moe.gate.wg.0.weight"] = (8 * experts, hidden)
            shapes[own + "mlp.moe.gate.wg.2.weight"] = (experts, 8 * experts)
        else:
            shapes[own + "mlp.moe.gate.wg.weight"] = (experts, hidden)
        shapes[own + "mlp.moe.gate.gate_map.weight"] = (experts, experts)
        for expert in range(experts - 4):
            shapes[f"{own}mlp.moe.experts.experts.{expert}.up_proj.weight"] = (2 * inner, hidden)
            shapes[f"{own}mlp.moe.experts.experts.{expert}.down_proj.weight"] = (hidden, inner)
        for expert in (experts - 4, experts - 3):
            shapes[f"{own}mlp.moe.experts.experts.{expert}.constant"] = (hidden,)
            shapes[f"{own}mlp.moe.experts.experts.{expert}.wg.weight"] = (2, hidden)
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{own}{name}.weight"] = (hidden,)
    shapes["model.norm.weight"] = (hidden,)
    shapes["lm_head.weight"] = (vocab, hidden)
    return shapes


def published_tensors(config: Mapping[str, Any], *, seed: int = SEED) -> dict[str, Tensor]:
    """Normal numbers of a size that keeps activations and routing lively."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in published_shapes(config).items():
        values = torch.randn(shape, generator=generator)
        if name.endswith("norm.weight"):
            values = 1 + 0.2 * values
        elif len(shape) > 1 and "embed" not in name:
            values = values * shape[-1] ** -0.5 * (2 if ".gate.wg" in name else 1)
        tensors[name] = values.to(getattr(torch, config.get("torch_dtype", "float32")))
    if config.get("tie_word_embeddings"):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    return tensors


def write_published(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    form: str = "pickled",
    shards: int = 3,
) -> Path:
    """A folder as ``save_pretrained`` leaves it: tensors dealt out in order, with an index if there are shards."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    stem, suffix = ("pytorch_model", "bin") if form == "pickled" else ("model", "safetensors")
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for number in range(shards):
        file = f"{stem}.{suffix}" if shards == 1 else f"{stem}-{number + 1:05}-of-{shards:05}.{suffix}"
        share = names[len(names) * number // shards : len(names) * (number + 1) // shards]
        held = {name: tensors[name] for name in share}
        if form == "pickled":
            torch.save(held, folder / file)
        else:
            save_file(held, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(share, file)
    if shards > 1:
        index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return folder


def published(folder: Path, *, seed: int = SEED, form: str = "pickled", shards: int = 3, **changes: Any) -> Path:
    """A random checkpoint on disk."""
    config = published_config(**changes)
    return write_published(folder, config, published_tensors(config, seed=seed), form=form, shards=shards)


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a folder's weights, its index believed."""
    held: dict[str, Tensor] = {}
    for file in sorted({*folder.glob("pytorch_model*.bin"), *folder.glob("model*.safetensors")}):
        if file.suffix == ".bin":
            held |= torch.load(file, weights_only=True)
        else:
            held |= load_file(file)
    return held
