"""What a plan counts, against what real processes hold and send."""

from functools import cache

import pytest

from moepp.model import MoEPPConfig
from moepp.plan import Batch, Cluster, Plan, Sizes, make_plan, parameter_shapes
from tests.distributed.processes import run_processes
from tests.model.factory import tiny_config

from .measured import train_at

CLUSTER = Cluster(gpu_memory=1e9, gpus_per_node=8, peak=1e12, utilisation=1.0, node_bandwidth=1e9, bandwidth=1e9)
SIZES = {
    1: [Sizes()],
    2: [Sizes(fsdp=2), Sizes(fsdp=2, ep=2), Sizes(replicate=2)],
    4: [Sizes(fsdp=4), Sizes(fsdp=4, ep=2), Sizes(fsdp=4, ep=4), Sizes(fsdp=2, ep=2, replicate=2)],
}


def case(sizes: Sizes) -> tuple[MoEPPConfig, Batch, Sizes]:
    """Two micro-batches a process, with activation checkpointing; 97 entries and 6 experts don't divide by 4.

    Shared experts, side by side in one network, do not divide at all.
    """
    experts = 4 if sizes.ep == 4 else 6
    config = tiny_config(
        num_ffn_experts=experts,
        num_shared_experts=2 if sizes.replicate == 1 else 0,
        capacity_factor=1.1,
        tie_word_embeddings=sizes == Sizes(fsdp=2),
    )
    batch = Batch(sequences=2, sequence_length=32, micro_batches=2 * sizes.gpus, bf16=True, checkpointing=True)
    return config, batch, sizes


@cache
def measured(world: int) -> dict[Sizes, dict[str, float]]:
    """The most that any rank has of each, for all sizes of so many processes."""
    ranks = run_processes(world, train_at, [case(sizes) for sizes in SIZES[world]])
    found = [{key: max(rank[index].get(key, 0.0) for rank in ranks) for key in KEYS} for index in range(len(ranks[0]))]
    return dict(zip(SIZES[world], found, strict=True))


KEYS = ("weights", "gradients", "optimizer", "accumulated", "gather", "reduce", "exchange")
EVERY = [
    pytest.param(world, sizes, id=f"{sizes.fsdp}-{sizes.ep}-{sizes.replicate}")
    for world, several in SIZES.items()
    for sizes in several
]


def planned(sizes: Sizes) -> Plan:
    config, batch, _ = case(sizes)
    return make_plan(config, parameter_shapes(config), batch, sizes, CLUSTER)


@pytest.mark.parametrize(("world", "sizes"), EVERY)
def test_the_planned_weights_gradients_and_optimizer_are_those_of_a_step(world: int, sizes: Sizes) -> None:
    memory, found = planned(sizes).memory, measured(world)[sizes]
    for name in ("weights", "gradients", "optimizer", "accumulated"):
        assert getattr(memory, name) == found[name], name


@pytest.mark.parametrize(("world", "sizes"), EVERY)
def test_the_planned_traffic_of_fsdp_is_on_the_wire_to_the_byte(world: int, sizes: Sizes) -> None:
    traffic, found = planned(sizes).traffic, measured(world)[sizes]
    assert traffic.gather.inside == pytest.approx(found["gather"], rel=1e-12)
    assert traffic.reduce.inside == pytest.approx(found["reduce"], rel=1e-12)
    assert traffic.gather.outside == traffic.reduce.outside == 0


@pytest.mark.parametrize(("world", "sizes"), EVERY)
def test_the_planned_rows_are_exchanged_where_experts_have_their_share(world: int, sizes: Sizes) -> None:
    traffic, found = planned(sizes).traffic, measured(world)[sizes]
    assert (sizes.ep == 1) == (found["exchange"] == 0)
    assert traffic.exchange.inside == pytest.approx(found["exchange"], rel=0.02), "loads are rounded to whole rows"
