"""Sizes of a recipe against the processes that there are."""

import pytest

from moepp.errors import ConfigError
from moepp.train.layout import DistributedSpec, Layout, resolve


@pytest.mark.parametrize(
    ("spec", "world_size", "layout"),
    [
        (DistributedSpec(), 1, Layout()),
        (DistributedSpec(), 4, Layout(fsdp_size=4, rank=0)),
        (DistributedSpec(ep_size=2, replicate_size=2), 4, Layout(2, 2, 2)),
        (DistributedSpec(fsdp_size=1, replicate_size=2), 2, Layout(2, 1, 1)),
    ],
)
def test_sizes_that_fit(spec: DistributedSpec, world_size: int, layout: Layout) -> None:
    assert resolve(spec, world_size=world_size, rank=0, num_ffn_experts=6) == layout
    assert layout.world_size == world_size


@pytest.mark.parametrize(
    ("spec", "world_size", "message"),
    [
        (
            DistributedSpec(fsdp_size=4, replicate_size=2),
            4,
            r"^distributed\.fsdp_size=4 x distributed\.replicate_size=2 needs 8 processes and there are 4; "
            r"change the sizes, or start so many: torchrun --nproc-per-node 8 -m moepp train …$",
        ),
        (DistributedSpec(fsdp_size=2), 1, r"needs 2 processes and there is 1; .*torchrun --nproc-per-node 2 -m moepp"),
        (DistributedSpec(replicate_size=3), 4, r"^distributed\.replicate_size=3 does not divide the 4 processes; "),
        (DistributedSpec(ep_size=3), 4, r"^distributed\.ep_size=3 does not divide distributed\.fsdp_size=4: .*choose"),
        (DistributedSpec(ep_size=2), 1, r"^distributed\.ep_size=2 does not divide distributed\.fsdp_size=1: .*choose"),
        (DistributedSpec(ep_size=4), 4, r"^distributed\.ep_size=4 does not divide model\.num_ffn_experts=6; choose"),
    ],
)
def test_sizes_that_do_not_fit(spec: DistributedSpec, world_size: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(spec, world_size=world_size, rank=0, num_ffn_experts=6)


@pytest.mark.parametrize("name", ["fsdp_size", "ep_size", "replicate_size"])
def test_sizes_are_at_least_one(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^distributed\.{name}=0 must be at least 1$"):
        DistributedSpec(**{name: 0})


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
def test_a_timeout_is_positive(seconds: float) -> None:
    with pytest.raises(ConfigError, match=r"^distributed\.timeout_seconds=\S+ must be a number > 0$"):
        DistributedSpec(timeout_seconds=seconds)
