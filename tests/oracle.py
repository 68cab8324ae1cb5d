"""One MoE layer written from the paper's equations (arXiv 2410.07348) with plain loops: the oracle of the layer tests.

Nothing is shared with the implementation. Loops run over tokens and experts in float64, and every step that has a
gradient is an ordinary torch operation, so that autograd gives the reference gradients too.

D hidden size, F intermediate size, K top-k; experts are numbered ffn | constant | copy | zero.
"""

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from moepp import MoEConfig


class Result(NamedTuple):
    """What the layer returns; the names after ``output`` are those of ``moepp.Routing``."""

    output: Tensor
    logits: Tensor
    probs: Tensor
    expert: Tensor
    weight: Tensor
    kept: Tensor


def parameters_of(moe: torch.nn.Module) -> dict[str, Tensor]:
    """Float64 leaves with the values of the module's parameters, under the same names."""
    return {name: p.detach().cpu().double().clone().requires_grad_() for name, p in moe.named_parameters()}


def moe_layer(
    parameters: Mapping[str, Tensor],
    config: MoEConfig,
    x: Tensor,
    previous: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    selection_bias: Tensor | None = None,
    capacity_factor: float | None = None,
) -> Result:
    """Eq. 1 for tokens ``x`` (T, D). ``capacity_factor`` None is dropless, whatever the configuration says."""
    real = [True] * len(x) if mask is None else [bool(m) for m in mask]
    logits, probs, chosen, weights = [], [], [], []
    for t, token in enumerate(x):
        logits.append(gate(parameters, config, token, None if previous is None else previous[t]))
        scores = normalise(logits[t], config.logits_std)
        probs.append(softmax(scores))
        chosen.append(choose(scores, selection_bias, config.top_k))
        weights.append(combine_weights(scores, probs[t], chosen[t], config))
    kept = keep(chosen, probs, real, config, capacity_factor)
    # A dropped assignment weighs 0; the token's other weights are not renormalised.
    weights = [
        [w if kept[t][k] else torch.zeros_like(w) for k, w in enumerate(weights[t])] for t in range(len(weights))
    ]
    rows = []
    for t, token in enumerate(x):
        row = torch.zeros_like(token)
        for e, w in zip(chosen[t], weights[t], strict=True):
            row = row + w * run_expert(parameters, config, e, config.input_scale * token)
        for s in range(config.num_shared_experts if real[t] else 0):
            row = row + shared_expert(parameters, config, s, config.input_scale * token)
        rows.append(row)
    return Result(
        output=torch.stack(rows),
        logits=torch.stack(logits),
        probs=torch.stack(probs),
        expert=torch.tensor(chosen),
        weight=torch.stack([torch.stack(w) for w in weights]),
        kept=torch.tensor(kept),
    )


def gate(parameters: Mapping[str, Tensor], config: MoEConfig, token: Tensor, previous: Tensor | None) -> Tensor:
    """Eq. 2 or its two-layer form, plus Eq. 6; ``previous`` None, as in the first layer, adds nothing."""
    if config.gate == "tanh_mlp":
        token = torch.tanh(parameters["router.hidden.weight"] @ token)
    logits = parameters["router.weight"] @ token
    if config.gating_residual and previous is not None:
        logits = logits + parameters["router.residual.weight"] @ previous
    return logits


def normalise(logits: Tensor, logits_std: float | None) -> Tensor:
    """The scores: logits over their unbiased standard deviation, times ``logits_std``; the mean stays."""
    if logits_std is None:
        return logits
    variance = ((logits - logits.mean()) ** 2).sum() / (len(logits) - 1)
    return logits / variance.sqrt() * logits_std


def softmax(scores: Tensor) -> Tensor:
    e = (scores - scores.max().detach()).exp()
    return e / e.sum()


def choose(scores: Tensor, selection_bias: Tensor | None, top_k: int) -> list[int]:
    """The K largest, best first, ties to the lower index. The bias chooses and has no other effect."""
    biased = (scores if selection_bias is None else scores + selection_bias).tolist()
    return sorted(range(len(biased)), key=lambda e: (-biased[e], e))[:top_k]


def combine_weights(scores: Tensor, probs: Tensor, chosen: list[int], config: MoEConfig) -> list[Tensor]:
    """The weights of the chosen experts under the four rules of ``config.combine``."""
    p = [probs[e] for e in chosen]
    if config.combine == "probabilities":
        return p
    if config.combine == "softmax_topk":
        return list(softmax(torch.stack([scores[e] for e in chosen])))
    if config.combine == "renormalize_nonzero":
        is_zero = [config.layout().type_of(e) == "zero" for e in chosen]
        if all(is_zero):
            return [torch.zeros_like(w) for w in p]
        p = [torch.zeros_like(w) if zero else w for w, zero in zip(p, is_zero, strict=True)]
    total = sum(p)
    return [w / total for w in p]


def capacities(config: MoEConfig, factor: float, assignments: int) -> list[int]:
    """Eq. 8 per expert, rounded up, at least 1; in exact arithmetic on the decimals that the user wrote."""
    gamma, tau = Fraction(str(factor)), Fraction(str(config.tau))
    layout = config.layout()
    share = gamma * assignments / (tau * layout.ffn + layout.num_zero_computation)
    bounds = [tau * share if e < layout.ffn else share for e in range(layout.num_experts)]
    return [max(1, math.ceil(bound)) for bound in bounds]


def keep(
    chosen: list[list[int]], probs: list[Tensor], real: list[bool], config: MoEConfig, factor: float | None
) -> list[list[bool]]:
    """Which assignments stay: never padding's, and per expert no more than its capacity."""
    kept = [[real[t]] * config.top_k for t in range(len(chosen))]
    if factor is None:
        return kept
    for e, bound in enumerate(capacities(config, factor, config.top_k * sum(real))):
        claims = [(t, k) for t in range(len(chosen)) for k in range(config.top_k) if real[t] and chosen[t][k] == e]
        if config.drop_policy == "probability":
            claims.sort(key=lambda claim: -probs[claim[0]][e].item())  # stable: equals stay in the order of tokens
        for t, k in claims[bound:]:
            kept[t][k] = False
    return kept


def run_expert(parameters: Mapping[str, Tensor], config: MoEConfig, expert: int, token: Tensor) -> Tensor:
    """E_i(x): Eq. 3, 4, 5, or the SwiGLU network whose gate is the first half of the rows of ``gate_up_proj``."""
    layout = config.layout()
    kind = layout.type_of(expert)
    if kind == "zero":
        return torch.zeros_like(token)
    if kind == "copy":
        return token
    if kind == "constant":
        c = expert - layout.ffn
        alpha = softmax(parameters["zero_computation.mix"][c] @ token)
        return alpha[0] * token + alpha[1] * parameters["zero_computation.constant"][c]
    return swiglu(parameters["experts.gate_up_proj"][expert], parameters["experts.down_proj"][expert], token)


def shared_expert(parameters: Mapping[str, Tensor], config: MoEConfig, number: int, token: Tensor) -> Tensor:
    """One of the shared experts, which are stored side by side in one network."""
    width = config.intermediate_size
    own = slice(number * width, (number + 1) * width)
    gate, up = parameters["shared_experts.gate_up_proj"][0].tensor_split(2)
    return swiglu(torch.cat([gate[own], up[own]]), parameters["shared_experts.down_proj"][0][:, own], token)


def swiglu(gate_up: Tensor, down: Tensor, token: Tensor) -> Tensor:
    """One FFN expert on one token: down(SiLU(gate x) * up x)."""
    width = gate_up.shape[0] // 2
    gated, up = gate_up[:width] @ token, gate_up[width:] @ token
    return down @ (gated * torch.sigmoid(gated) * up)


def balance_loss(result: Result, config: MoEConfig, mask: Tensor | None = None) -> Tensor:
    """Eq. 7 over real tokens: sum of eta_i f_i P_i; f counts choices, dropped or not."""
    tokens = [t for t in range(len(result.probs)) if mask is None or bool(mask[t])]
    layout = config.layout()
    loss = result.probs.new_zeros(())
    for e in range(layout.num_experts):
        eta = 1.0 if layout.type_of(e) == "ffn" else config.tau
        f = sum(e in result.expert[t].tolist() for t in tokens) / len(tokens)
        loss = loss + eta * f * torch.stack([result.probs[t, e] for t in tokens]).mean()
    return loss
