"""What vLLM's transformers backend asks of a model, as far as it can be had without vLLM (docs/compatibility.md).

That backend makes the decoder on the meta device, puts its own attention behind transformers' interface and its own
module in the place of ``experts``, and runs many requests as one sequence.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from moepp import MoE, MoEConfig
from moepp.model import MoEPPModel, preset

from ..factory import randn, random_moe
from ..model.factory import fill, tiny_config, tokens
from ..tolerances import assert_close

LENGTHS = (5, 9, 1)
EXPERTS = 4


class Foreign(nn.Module):
    """As strict as vLLM's fused experts: their own ids alone, and the tokens' memory is theirs to overwrite."""

    def __init__(self, experts: nn.Module) -> None:
        super().__init__()
        self.gate_up, self.down = experts.gate_up_proj, experts.down_proj

    def forward(self, hidden_states: Tensor, topk_ids: Tensor, topk_weights: Tensor) -> Tensor:
        torch._assert_async(((topk_ids >= 0) & (topk_ids < EXPERTS)).all(), "an id that no expert has")
        gate, up = torch.einsum("td,nfd->tnf", hidden_states, self.gate_up).chunk(2, dim=-1)
        every = torch.einsum("tnf,ndf->tnd", F.silu(gate) * up, self.down)
        weight = torch.zeros(every.shape[:2]).scatter_add(1, topk_ids, topk_weights)
        y = torch.einsum("tn,tnd->td", weight, every)
        hidden_states.copy_(y)
        return hidden_states


def attention_per_request(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Causal within each request of the flattened batch; as in vLLM, nobody makes a mask for it."""
    assert attention_mask is None
    groups = module.num_key_value_groups
    parts = []
    for q, k, v in zip(*(t.split(LENGTHS, dim=2) for t in (query, key, value)), strict=True):
        k, v = (t.repeat_interleave(groups, dim=1) for t in (k, v))
        parts.append(F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=kwargs["scaling"]))
    return torch.cat(parts, dim=2).transpose(1, 2), None


@pytest.fixture
def attention() -> Iterator[str]:
    ALL_ATTENTION_FUNCTIONS.register("served", attention_per_request)
    yield "served"
    ALL_ATTENTION_FUNCTIONS._global_mapping.pop("served")


def served(model: MoEPPModel, attention: str) -> MoEPPModel:
    """The same weights, made and changed as the backend does it."""
    config = tiny_config()
    config._attn_implementation = attention
    with torch.device("meta"):
        made = AutoModel.from_config(config)
    assert all(parameter.is_meta for parameter in made.parameters())
    made.rotary_emb = model.rotary_emb
    made.load_state_dict(model.state_dict(), assign=True)
    for layer in made.layers:
        layer.mlp.experts = Foreign(layer.mlp.experts)
    return made.eval()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "one graph"])
def test_decoder_runs_with_foreign_attention_and_foreign_experts(attention: str, compiled: bool) -> None:
    model = MoEPPModel(tiny_config()).eval()
    fill(model)
    rows = [tokens(1, length, seed=length)[0] for length in LENGTHS]
    run: Any = served(model, attention)
    if compiled:
        torch._dynamo.reset()
        run = torch.compile(run, fullgraph=True, backend="eager")
    positions = torch.cat([torch.arange(length) for length in LENGTHS])
    with torch.no_grad():
        flat = run(input_ids=torch.cat(rows)[None], position_ids=positions[None], use_cache=False, return_dict=False)
        for row, found in zip(rows, flat[0][0].split(LENGTHS), strict=True):
            assert_close(found, model(row[None]).last_hidden_state[0])


@pytest.mark.parametrize("kind", [{}, {"num_constant_experts": 0, "num_copy_experts": 0, "num_zero_experts": 0}])
def test_a_layer_gives_foreign_experts_their_own_ids_alone(kind: dict) -> None:
    """With capacity and padding too, whose assignments nobody takes."""
    config = MoEConfig(hidden_size=8, intermediate_size=12, num_ffn_experts=EXPERTS, **kind)
    layer: MoE = random_moe(config, dtype=torch.float32)
    x, mask = randn(3, 7, 8, seed=1, dtype=torch.float32), torch.arange(21) % 5 != 0
    expected, routing = layer(x, mask=mask)
    assert not routing.kept.all()
    layer.experts = Foreign(layer.experts)
    with torch.no_grad():
        assert_close(layer(x, mask=mask)[0], expected)


def test_the_backend_finds_what_it_looks_for() -> None:
    """Names and shapes from vLLM 0.33's own source: without them it refuses the model or takes it for a dense one."""
    assert MoEPPModel.is_backend_compatible()
    config = preset("moepp-0.6b-8+4")
    assert (config.num_local_experts, config.num_experts_per_tok, config.intermediate_size) == (8, 2, 2048)
    block = MoEPPModel(tiny_config()).layers[1].mlp
    shapes = {name: tuple(parameter.shape) for name, parameter in block.experts.named_parameters()}
    assert shapes == {"gate_up_proj": (EXPERTS, 96, 32), "down_proj": (EXPERTS, 32, 48)}
    assert {name for name, _ in block.named_children()} == {"router", "experts", "zero_computation"}
