"""The published model written from its description, token by token: the oracle of the tests of its checkpoint.

Nothing is shared with the implementation, nor with ``tests/oracle.py``: it reads tensors under their published names,
flags from the published ``config.json``, and computes in float64. One sequence at a time, no padding.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

# What the published class takes where config.json says nothing.
DEFAULTS: dict[str, Any] = {
    "moe_2layer_gate": True,
    "moe_use_logits_norm": False,
    "moe_gate_norm_std": 1.0,
    "moe_feature_no_mul_topk": False,
    "moe_use_mixtral_gating": False,
    "rope_theta": 10000.0,
    "rope_scaling": None,
}


class Result(NamedTuple):
    logits: Tensor
    """(tokens, vocabulary)"""
    router_logits: Tensor
    """(layers, tokens, experts) as carried to the next layer"""
    combine: Tensor
    """(layers, tokens, experts) weights of the experts' outputs"""
    margin: float
    """The smallest gap between a token's second and third routing score: below rounding, a choice means nothing."""


def forward(tensors: Mapping[str, Tensor], published: Mapping[str, Any], ids: list[int]) -> Result:
    """The model's outputs for one sequence."""
    config = DEFAULTS | dict(published)
    weights = {name: tensor.double() for name, tensor in tensors.items()}
    x = [weights["model.embed_tokens.weight"][token] for token in ids]
    previous: list[Tensor | None] = [None] * len(ids)
    routers, combines, margin = [], [], math.inf
    for layer in range(config["num_hidden_layers"]):
        own = f"model.layers.{layer}."
        w = {name.removeprefix(own): tensor for name, tensor in weights.items() if name.startswith(own)}
        normed = [rms_norm(token, w["input_layernorm.weight"], config) for token in x]
        x = [token + a for token, a in zip(x, attention(w, config, normed), strict=True)]
        carried, combined = [], []
        for t, token in enumerate(x):
            inside = rms_norm(token, w["post_attention_layernorm.weight"], config)
            logits = gate(w, config, inside, previous[t])
            weight, gap = combine(config, logits)
            margin = min(margin, gap)
            doubled = not config["moe_feature_no_mul_topk"] and not config["moe_use_mixtral_gating"]
            seen = 2 * inside if doubled else inside
            y = torch.zeros_like(token)
            for expert in range(len(logits)):
                if weight[expert] != 0:
                    y = y + weight[expert] * run_expert(w, config, expert, seen)
            x[t] = token + y
            carried.append(logits)
            combined.append(weight)
        previous = list(carried)
        routers.append(torch.stack(carried))
        combines.append(torch.stack(combined))
    head = weights["model.embed_tokens.weight" if config.get("tie_word_embeddings") else "lm_head.weight"]
    logits = torch.stack([head @ rms_norm(token, weights["model.norm.weight"], config) for token in x])
    return Result(logits, torch.stack(routers), torch.stack(combines), margin)


def rms_norm(token: Tensor, weight: Tensor, config: Mapping[str, Any]) -> Tensor:
    return token / ((token * token).mean() + config["rms_norm_eps"]).sqrt() * weight


def attention(w: Mapping[str, Tensor], config: Mapping[str, Any], x: list[Tensor]) -> list[Tensor]:
    """Causal attention with rotary positions; each key and value head serves several query heads, in order."""
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    width = config["hidden_size"] // heads
    q, k, v = ([(w[f"self_attn.{n}_proj.weight"] @ token).reshape(-1, width) for token in x] for n in "qkv")
    out = []
    for t in range(len(x)):
        of_heads = []
        for head in range(heads):
            shared = head // (heads // kv_heads)
            query = rotate(q[t][head], t, config)
            scores = [query @ rotate(k[s][shared], s, config) / math.sqrt(width) for s in range(t + 1)]
            share = torch.stack(scores).softmax(0)
            of_heads.append(sum(share[s] * v[s][shared] for s in range(t + 1)))
        out.append(w["self_attn.o_proj.weight"] @ torch.cat(of_heads))
    return out


def rotate(vector: Tensor, position: int, config: Mapping[str, Any]) -> Tensor:
    """Turns the pairs (i, i + half) by position · base^(-2i / width)."""
    base = config["rope_theta"]
    if config["rope_scaling"] is not None:
        assert config["rope_scaling"]["type"] == "ntk"
        base = base * config["rope_scaling"]["factor"]
    half = len(vector) // 2
    out = torch.empty_like(vector)
    for i in range(half):
        angle = position * base ** (-2 * i / len(vector))
        out[i] = vector[i] * math.cos(angle) - vector[i + half] * math.sin(angle)
        out[i + half] = vector[i + half] * math.cos(angle) + vector[i] * math.sin(angle)
    return out


def gate(w: Mapping[str, Tensor], config: Mapping[str, Any], token: Tensor, previous: Tensor | None) -> Tensor:
    if config["moe_2layer_gate"]:
        logits = w["mlp.moe.gate.wg.2.weight"] @ torch.tanh(w["mlp.moe.gate.wg.0.weight"] @ token)
    else:
        logits = w["mlp.moe.gate.wg.weight"] @ token
    return logits if previous is None else logits + w["mlp.moe.gate.gate_map.weight"] @ previous


def combine(config: Mapping[str, Any], logits: Tensor) -> tuple[Tensor, float]:
    """A token's weight for every expert, 0 where not chosen; the last expert is the zero expert."""
    scores = logits
    if config["moe_use_logits_norm"]:
        deviation = (((logits - logits.mean()) ** 2).sum() / (len(logits) - 1)).sqrt()
        scores = logits / (deviation / config["moe_gate_norm_std"])
    first, second, third = sorted(range(len(scores)), key=lambda e: -scores[e].item())[:3]
    weight = torch.zeros_like(scores)
    if config["moe_use_mixtral_gating"]:
        e1, e2 = scores[first].exp(), scores[second].exp()
        weight[first], weight[second] = e1 / (e1 + e2), e2 / (e1 + e2)
    else:
        probability = scores.exp() / scores.exp().sum()
        weight[first], weight[second] = probability[first], probability[second]
        weight[-1] = 0
        weight = weight / weight.sum()
    return weight, (scores[second] - scores[third]).item()


def run_expert(w: Mapping[str, Tensor], config: Mapping[str, Any], expert: int, x: Tensor) -> Tensor:
    """FFN experts, two constants, a copy, a zero."""
    of_ffn = config["num_experts"][0] - 4
    own = f"mlp.moe.experts.experts.{expert}."
    if expert < of_ffn:
        both = w[own + "up_proj.weight"] @ x
        gated, up = both[: config["intermediate_size"]], both[config["intermediate_size"] :]
        return w[own + "down_proj.weight"] @ (gated / (1 + torch.exp(-gated)) * up)
    if expert < of_ffn + 2:
        mix = torch.exp(w[own + "wg.weight"] @ x)
        return mix[0] / mix.sum() * x + mix[1] / mix.sum() * w[own + "constant"]
    return x if expert == of_ffn + 2 else torch.zeros_like(x)
