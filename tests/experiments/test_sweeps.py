"""Pairs of models, and what a sweep says of them."""

import pytest

from experiments import sweep_gamma
from experiments.lab import Lab
from experiments.outcomes import below
from experiments.sweep import compare_pairs, contest, models
from experiments.text import nats
from experiments.variants import MOEPP, SHARED, VANILLA, with_tau

from .toy import fill


def test_models_of_pairs_are_named_once_with_bases_first() -> None:
    others = [with_tau(0.1), with_tau(1.0)]
    assert models([(other, MOEPP) for other in others]) == [MOEPP, *others]


def test_a_pair_is_compared_seed_by_seed(lab: Lab) -> None:
    ours, theirs = MOEPP.short(), VANILLA.short()
    fill(lab, [lab.run(variant, seed) for variant in (ours, theirs) for seed in lab.scale.seeds])
    found = compare_pairs(lab, [(ours, theirs)], flops_over=theirs)
    (difference,) = found.data["differences"].values()
    losses = lab.losses(ours), lab.losses(theirs)
    assert list(difference) == pytest.approx([losses[0][seed] - losses[1][seed] for seed in lab.scale.seeds])
    assert found.data["models"][theirs.name]["expert_flops"] == 1
    assert found.data["models"][ours.name]["expert_flops"] < 1


def test_a_shared_expert_s_flops_count(lab: Lab) -> None:
    (shared,) = [lab.run(SHARED, seed) for seed in lab.scale.seeds[:1]]
    twin = lab.run(VANILLA.short(), lab.scale.seeds[0])
    fill(lab, [shared, twin])
    width = 24 / 40  # .6 of the toy's width
    assert lab.pool.record(shared).expert_flops == pytest.approx(width * lab.pool.record(twin).expert_flops)


def test_the_probe_is_confirmed_by_an_interval_over_seeds() -> None:
    def outcome(*shares: float) -> str:
        return sweep_gamma.probe(MOEPP, {MOEPP.name: {seed: {10: s} for seed, s in enumerate(shares)}}, "").outcome

    assert outcome(0.25, 0.26, 0.27) == "agrees"
    assert outcome(0.2, 0.5) == "unresolved"
    assert outcome(0.02, 0.021, 0.019) == "disagrees"


def test_a_claim_on_a_pair_rests_on_its_difference(lab: Lab) -> None:
    ours, theirs = MOEPP.short(), VANILLA.short()
    fill(lab, [lab.run(variant, seed) for variant in (ours, theirs) for seed in lab.scale.seeds])
    found = contest(lab, ours, theirs, "It is better.", more="Really.")
    assert found.outcome == below(lab.difference(ours, theirs))
    assert found.evidence == f"{nats(lab.difference(ours, theirs))}. Really."
    assert contest(lab, theirs, ours, "It is worse.", lower=False).outcome == found.outcome
