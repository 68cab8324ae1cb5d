"""How a plan divides traffic between a node's links and those between nodes, and how long it takes."""

import dataclasses

import pytest

from moepp.model import preset
from moepp.plan import Batch, Cluster, Plan, Sizes, all_sizes, exchange, flops_per_token, make_plan, parameter_shapes

CONFIG = preset("debug", num_ffn_experts=8)
SHAPES = parameter_shapes(CONFIG)
BATCH = Batch(sequences=2, sequence_length=32, micro_batches=32, bf16=True, checkpointing=False)
CLUSTER = Cluster(gpu_memory=1e9, gpus_per_node=4, peak=1e12, utilisation=0.5, node_bandwidth=1e9, bandwidth=1e8)


def plan(cluster: Cluster = CLUSTER, **sizes: int) -> Plan:
    return make_plan(CONFIG, SHAPES, BATCH, Sizes(**sizes), cluster)


def test_a_group_within_a_node_sends_nothing_out_of_it() -> None:
    traffic = plan(fsdp=4, ep=4, replicate=2).traffic
    assert traffic.gather.inside > 0 == traffic.gather.outside
    assert traffic.exchange.inside > 0 == traffic.exchange.outside
    assert traffic.reduce.outside > 0, "replicas are on different nodes"


def test_what_enters_a_node_is_shared_by_its_gpus() -> None:
    """8 processes on 2 nodes of 4: half of the weights, by 4 links; and in a node what 3 others of 4 brought in."""
    wide = plan(fsdp=8).traffic.gather
    narrow = plan(dataclasses.replace(CLUSTER, gpus_per_node=8), fsdp=8).traffic.gather
    assert narrow.outside == 0
    whole = narrow.inside * 8 / 7
    assert wide.outside == pytest.approx(whole / 2 / 4)
    assert wide.inside == pytest.approx(whole * 3 / 4)


def test_expert_parallelism_over_nodes_sends_each_row_to_its_own_place() -> None:
    traffic = plan(fsdp=8, ep=8).traffic.exchange
    assert traffic.inside / traffic.outside == pytest.approx(3 / 4)


def test_only_ffn_pairs_are_exchanged() -> None:
    sizes = Sizes(fsdp=4, ep=4)
    ours, theirs = exchange(CONFIG, BATCH, sizes), exchange(CONFIG.vanilla(), BATCH, sizes)
    assert theirs.rows == BATCH.tokens * 2
    assert ours.rows / theirs.rows == CONFIG.moe.ffn_share()
    assert ours.away == ours.rows * 3 / 4


def test_activation_checkpointing_costs_a_forward_pass_without_the_head() -> None:
    again = dataclasses.replace(BATCH, checkpointing=True)
    head = 2 * CONFIG.vocab_size * CONFIG.hidden_size
    forward = flops_per_token(CONFIG, BATCH) / 3
    assert flops_per_token(CONFIG, again) == pytest.approx(4 * forward - head)


def test_gathering_hides_behind_computing_and_the_exchange_does_not() -> None:
    found = plan(fsdp=4, ep=4)
    assert found.computing == pytest.approx(found.flops / 0.5e12)
    assert found.step == max(found.computing, found.gathering) + found.exchanging
    slow = plan(dataclasses.replace(CLUSTER, node_bandwidth=1e5), fsdp=4, ep=4)
    assert slow.step == slow.gathering + slow.exchanging > found.step


def test_all_sizes_are_those_that_training_accepts() -> None:
    found = all_sizes(8, 6)
    assert len(set(found)) == len(found) == 4 + 3  # ep 2 divides 6 experts, and fsdp from 2 on; 4 and 8 don't
    assert all(sizes.gpus == 8 and sizes.fsdp % sizes.ep == 0 and 6 % sizes.ep == 0 for sizes in found)
