"""What disabling an expert does to a layer's routing."""

from typing import get_args

import pytest
import torch

from experiments import paper
from experiments.table_c import KINDS, disabled_types, effective, intervention
from moepp import MoE, MoEConfig
from moepp.config import ExpertType

from ..factory import randn, random_moe


@pytest.fixture(scope="module")
def layer() -> MoE:
    config = MoEConfig(
        hidden_size=16, intermediate_size=8, num_ffn_experts=4, combine="renormalize", capacity_factor=None
    )
    return random_moe(config).eval()


def test_the_papers_rows_are_all_subsets_of_the_types() -> None:
    subsets = [frozenset(disabled_types(name)) for name in paper.TABLE_C]
    assert len(set(subsets)) == len(subsets) == 2 ** len(KINDS)
    assert {*KINDS, "ffn"} == {*get_args(ExpertType)}


@pytest.mark.parametrize("name", [name for name in paper.TABLE_C if name != "all"])
def test_re_routed_slots_go_to_other_experts_and_lost_ones_to_none(layer: MoE, name: str) -> None:
    x, layout = randn(200, 16, seed=1), layer.config.layout()
    kinds = disabled_types(name)
    gone = torch.tensor([expert for kind in kinds for expert in layout.indices(kind)])
    y, plain = layer(x)
    struck = torch.isin(plain.expert, gone)
    assert struck.any()

    re_routed = layer(x, selection_bias=intervention("re-routed", kinds, layout, "cpu")["selection_bias"])[1]
    assert not torch.isin(re_routed.expert, gone).any()
    assert re_routed.kept.all()
    torch.testing.assert_close(re_routed.weight.sum(-1), torch.ones(200, dtype=x.dtype))
    untouched = ~struck.any(-1)
    assert torch.equal(re_routed.expert[untouched], plain.expert[untouched])

    out, lost = layer(x, edit=intervention("lost", kinds, layout, "cpu")["routing_edit"])
    assert torch.equal(lost.kept, ~struck)
    assert torch.equal(lost.weight, plain.weight.masked_fill(struck, 0.0))
    assert torch.equal(out, y) == (not effective("lost", kinds))
