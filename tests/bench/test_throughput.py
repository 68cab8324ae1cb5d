"""The bound of trained models' expert throughput: what the routing and the shared experts leave to gain."""

import math

import pytest
import torch

from moepp.bench import expert_throughput
from moepp.model import MoEPPForCausalLM, preset

IDS = torch.randint(0, 512, (1, 70), generator=torch.Generator().manual_seed(0))


def bound(**changes: float) -> float:
    """Of synthetic routing."""
    ours = MoEPPForCausalLM(preset("debug", num_shared_experts=2, **changes))
    twin = MoEPPForCausalLM(preset("debug", num_shared_experts=2).vanilla())
    found = expert_throughput({"moepp": ours, "vanilla": twin}, IDS, baseline="vanilla", rounds=4)
    assert found["vanilla"]["synthetic"].bound == 1
    return found["moepp"]["synthetic"].bound


def test_the_bound_counts_the_shared_experts_of_both() -> None:
    # 4 FFN experts at tau .75 against 4 others: 60 of 140 choices, and 140 by the shared experts.
    assert bound() == pytest.approx((140 + 140) / (60 + 140))


def test_the_bound_counts_each_experts_size() -> None:
    assert bound(intermediate_size=64) == pytest.approx(2 * (140 + 140) / (60 + 140))


def test_without_any_work_for_ffn_experts_there_is_no_bound() -> None:
    ours, twin = (MoEPPForCausalLM(config) for config in (preset("debug", tau=1e-4), preset("debug").vanilla()))
    found = expert_throughput({"moepp": ours, "vanilla": twin}, IDS, baseline="vanilla", rounds=4)
    assert found["moepp"]["synthetic"].bound == math.inf
