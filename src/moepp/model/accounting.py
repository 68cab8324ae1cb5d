"""Parameters, FLOPs and bytes of a model, from its configuration alone.

A multiply-add counts 2 FLOPs; biases, norms, softmax and rotary embeddings are left out. Training costs three forward
passes.
"""

from dataclasses import dataclass

from ..layers.routing import TANH_WIDTH
from .configuration_moepp import MoEPPConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Accounting:
    """Counts per model or per token, as each name says; bytes at the ``bytes_per_weight`` asked for."""

    total_parameters: int
    embedding_parameters: int
    attention_parameters: int
    router_parameters: int
    ffn_expert_parameters: int
    """Of those that the router chooses from."""
    shared_expert_parameters: int
    zero_computation_parameters: int
    norm_parameters: int

    activated_parameters: int
    """At most: a token that chooses K FFN experts, or all there are; the shared ones besides."""
    expected_activated_parameters: float
    """On average, at the FFN share that tau's balance implies (Table 1)."""
    ffn_share: float
    """Share of the assignments that go to FFN experts at that balance."""
    forward_flops_per_token: float
    training_flops_per_token: float
    expert_flops_per_token: float
    """Of FFN experts, chosen and shared."""
    vanilla_expert_flops_per_token: float
    """Of the twin, which has the same shared experts."""
    speedup_bound: float
    """Table 1: vanilla expert FLOPs over ours. Without shared experts, 1 / ``ffn_share``."""
    weight_bytes: int
    kv_bytes_per_token: int


def account(config: MoEPPConfig, *, context: int | None = None, bytes_per_weight: int = 2) -> Accounting:
    """Counts one model.

    Args:
        context: sequence length over which attention's FLOPs are averaged, causally; the model's maximum by default.
        bytes_per_weight: 2 for bf16 weights and KV cache.
    """
    moe, layout, layers = config.moe, config.moe.layout(), config.num_hidden_layers
    hidden, heads, kv_heads, head_dim = (
        config.hidden_size,
        config.num_attention_heads,
        config.num_key_value_heads or config.num_attention_heads,
        config.head_dim or config.hidden_size // config.num_attention_heads,
    )
    embedding = config.vocab_size * hidden
    head = 0 if config.tie_word_embeddings else embedding

    projections = 2 * hidden * head_dim * (heads + kv_heads)
    biases = head_dim * (heads + 2 * kv_heads) + hidden if config.attention_bias else 0
    attention = projections + biases
    experts = layout.num_experts
    gate = TANH_WIDTH * experts * (hidden + experts) if moe.gate == "tanh_mlp" else experts * hidden
    residual = experts * experts if moe.gating_residual else 0
    router = layers * gate + (layers - 1) * residual
    one_ffn = 3 * hidden * moe.intermediate_size
    zero_computation = layers * layout.constant * 3 * hidden
    norms = (2 * layers + 1) * hidden

    shared = layers * moe.num_shared_experts * one_ffn
    always = embedding + head + layers * attention + router + zero_computation + shared + norms
    most = min(moe.top_k, layout.ffn)
    expected = moe.top_k * moe.ffn_share()
    length = context or config.max_position_embeddings
    attention_scores = 2 * 2 * heads * head_dim * (length + 1) / 2  # QK and PV over the average causal context
    expert_flops = 2.0 * layers * (expected + moe.num_shared_experts) * one_ffn
    vanilla_expert_flops = 2.0 * layers * (moe.top_k + moe.num_shared_experts) * one_ffn
    forward = (
        2.0 * (layers * projections + router + embedding)  # the head's product is there tied or not
        + layers * (attention_scores + 2 * layout.constant * 3 * hidden)
        + expert_flops
    )
    total = always + layers * layout.ffn * one_ffn
    return Accounting(
        total_parameters=total,
        embedding_parameters=embedding + head,
        attention_parameters=layers * attention,
        router_parameters=router,
        ffn_expert_parameters=layers * layout.ffn * one_ffn,
        shared_expert_parameters=shared,
        zero_computation_parameters=zero_computation,
        norm_parameters=norms,
        activated_parameters=always + layers * most * one_ffn,
        expected_activated_parameters=always + layers * expected * one_ffn,
        ffn_share=moe.ffn_share(),
        forward_flops_per_token=forward,
        training_flops_per_token=3 * forward,
        expert_flops_per_token=expert_flops,
        vanilla_expert_flops_per_token=vanilla_expert_flops,
        speedup_bound=vanilla_expert_flops / expert_flops,
        weight_bytes=total * bytes_per_weight,
        kv_bytes_per_token=2 * layers * kv_heads * head_dim * bytes_per_weight,
    )
