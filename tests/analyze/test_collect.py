"""Statistics of a model on text."""

import pytest
import torch

from moepp.analyze import collect_stats
from moepp.model import MoEPPForCausalLM, preset


@pytest.fixture
def model() -> MoEPPForCausalLM:
    return MoEPPForCausalLM(preset("debug"))


def test_statistics_add_up_over_batches(model: MoEPPForCausalLM) -> None:
    ids = torch.randint(0, 512, (4, 16))
    together = collect_stats(model, [{"input_ids": ids}])
    apart = collect_stats(model, [{"input_ids": ids[:1]}, {"input_ids": ids[1:]}])
    assert len(together) == 2
    for one, two in zip(together, apart, strict=True):
        assert int(one.tokens) == 64
        assert torch.equal(one.assigned, two.assigned)
        assert torch.equal(one.kept, two.kept)


def test_padding_does_not_count(model: MoEPPForCausalLM) -> None:
    ids = torch.randint(0, 512, (2, 16))
    mask = torch.ones_like(ids)
    mask[1, :6] = 0
    stats = collect_stats(model, [{"input_ids": ids, "attention_mask": mask}])
    assert [int(layer.tokens) for layer in stats] == [26, 26]
    assert [int(layer.assigned.sum()) for layer in stats] == [52, 52]


def test_the_models_mode_stays(model: MoEPPForCausalLM) -> None:
    model.train()
    collect_stats(model, [{"input_ids": torch.randint(0, 512, (1, 4))}])
    assert model.training
