"""Scores, layers, loss, position and agreement: against loops, by hand, and where nothing varies."""

import math
import statistics
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from moepp.analyze import (
    agreement,
    by_position,
    layer_correlation,
    loss_by_experts,
    router_entropy,
    score_density,
)
from moepp.analyze.relations import cramers_v, pearson, ranks
from moepp.config import ExpertLayout
from moepp.errors import DataError

from .factory import LAYOUT, random_table, written_table

few = settings(max_examples=50, deadline=None)
numbers = st.lists(st.integers(-3, 3), min_size=2, max_size=30)


def test_score_densities_integrate_to_one_and_are_counts_of_bins() -> None:
    table = random_table(300)
    found = score_density(table, bins=20)
    assert found.edges.tolist() == pytest.approx([n / 20 for n in range(21)])
    np.testing.assert_allclose(found.layers.sum(axis=-1) / 20, 1)
    np.testing.assert_allclose(found.overall.sum(axis=-1) / 20, 1)
    inside = [score for score in table.score[:, 1, 0].tolist() if 0.25 <= score < 0.3]
    assert found.layers[1, 0, 5] == pytest.approx(20 * len(inside) / 300)
    np.testing.assert_allclose(found.overall, found.layers.mean(axis=0))


def test_score_moments_are_those_of_all_scores() -> None:
    table = random_table(100)
    found = score_density(table)
    for slot in range(2):
        scores = table.score[:, :, slot].ravel().tolist()
        assert found.mean[slot] == pytest.approx(statistics.fmean(scores))
        assert found.variance[slot] == pytest.approx(statistics.pvariance(scores))
        layer = table.score[:, 2, slot].tolist()
        assert found.layer_mean[2, slot] == pytest.approx(statistics.fmean(layer))
        assert found.layer_variance[2, slot] == pytest.approx(statistics.pvariance(layer))


def test_a_score_of_one_and_its_rounding_stand_in_the_last_bin() -> None:
    table = written_table([[[0, 1]]] * 2, score=[[[1.0, 0.0]], [[1 + 1e-6, 0.5]]])
    found = score_density(table, bins=4)
    assert found.overall.tolist() == [[0, 0, 0, 4], [2, 0, 2, 0]]


def test_nobody_has_no_score() -> None:
    nobody = LAYOUT.num_experts
    table = written_table(
        [[[0, nobody], [1, nobody]], [[nobody, nobody], [1, nobody]]], score=[[[0.5, 0], [0.25, 0]]] * 2
    )
    found = score_density(table, bins=4)
    assert found.layers[0, 0].tolist() == [0, 0, 4, 0]
    assert found.overall[0].tolist() == pytest.approx([0, 8 / 3, 4 / 3, 0])
    assert found.layer_mean[:, 0].tolist() == [0.5, 0.25]
    assert found.mean[0] == pytest.approx(1 / 3)
    assert found.variance[0] == pytest.approx(statistics.pvariance([0.5, 0.25, 0.25]))
    for values in (found.layers[:, 1], found.overall[1], found.layer_mean[:, 1], found.layer_variance[:, 1]):
        assert np.isnan(values).all()
    assert np.isnan([found.mean[1], found.variance[1]]).all()


def test_nobody_is_no_choice_that_layers_could_share() -> None:
    nobody = LAYOUT.num_experts
    rng = np.random.default_rng(0)
    chosen = rng.integers(0, 8, (4000, 2, 1))
    chosen[:2000] = nobody
    found = layer_correlation(written_table(chosen.tolist()))
    assert found.first[0, 1] < 0.05
    assert np.isnan(layer_correlation(written_table(np.full((9, 2, 1), nobody).tolist())).first).all()


@few
@given(seed=st.integers(0, 99), tokens=st.integers(1, 60))
def test_layers_correlate_as_pairs_of_columns_do(seed: int, tokens: int) -> None:
    table = random_table(tokens, 3, seed=seed)
    ffn, found = table.active("ffn"), layer_correlation(table).ffn
    for a, b in np.ndindex(3, 3):
        assert found[a, b] == pytest.approx(pearson(ffn[:, a], ffn[:, b]), nan_ok=True)


def test_entropy_of_a_router_that_knows_nothing_is_all_of_log_e() -> None:
    even = math.log(LAYOUT.num_experts)
    found = router_entropy(written_table([[[0, 1], [0, 1]]] * 2, entropy=[[even, 0.5], [even, 1.5]]))
    assert found.mean.tolist() == pytest.approx([even, 1.0])
    assert found.share.tolist() == pytest.approx([1.0, 1 / even])


def test_entropy_of_a_single_expert_has_no_share() -> None:
    single = written_table([[[0]]] * 2, layout=ExpertLayout(1, 0, 0, 0), entropy=[[0], [0]])
    assert np.isnan(router_entropy(single).share).all()


@few
@given(pairs=st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=2, max_size=30))
def test_correlations_are_those_of_the_standard_library(pairs: list[tuple[int, int]]) -> None:
    x, y = (list(column) for column in zip(*pairs, strict=True))
    found, ranked = pearson(np.array(x), np.array(y)), pearson(ranks(np.array(x)), ranks(np.array(y)))
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert math.isnan(found)
        assert math.isnan(ranked)
    else:
        assert found == pytest.approx(statistics.correlation(x, y), abs=1e-9)
        assert ranked == pytest.approx(_spearman(x, y), abs=1e-9)


def _spearman(x: list[int], y: list[int]) -> float:
    """Ranks by counting: how many are smaller, and half of the others that are equal."""
    mean_ranks = [[sum(b < a for b in v) + (sum(b == a for b in v) - 1) / 2 for a in v] for v in (x, y)]
    return statistics.correlation(*mean_ranks)


@few
@given(counts=st.lists(st.lists(st.integers(0, 5), min_size=3, max_size=3), min_size=2, max_size=4))
@example(counts=[[0, 1, 2], [1, 2, 0], [0, 1, 0]])
def test_cramers_v_is_bergsmas_formula(counts: list[list[int]]) -> None:
    table = np.array(counts)
    rows, columns = (table.sum(axis=axis) for axis in (1, 0))
    n, r, k = int(table.sum()), int((rows > 0).sum()), int((columns > 0).sum())
    found = cramers_v(table)
    if r < 2 or k < 2:
        assert math.isnan(found)
        return
    chi = 0.0
    for i in np.flatnonzero(rows):
        for j in np.flatnonzero(columns):
            expected = rows[i] * columns[j] / n
            chi += (table[i, j] - expected) ** 2 / expected
    phi = max(0.0, chi / n - (r - 1) * (k - 1) / (n - 1))
    r_, k_ = r - (r - 1) ** 2 / (n - 1), k - (k - 1) ** 2 / (n - 1)
    if min(r_, k_) <= 1 + 1e-12:
        assert math.isnan(found)
    else:
        # Squared: of rounding near 0 a root makes 1e-8.
        assert found**2 == pytest.approx(phi / (min(r_, k_) - 1), abs=1e-12)


def test_cramers_v_is_one_for_a_code_and_nothing_for_chance() -> None:
    assert cramers_v(np.diag([40, 30, 30])) == pytest.approx(1)
    assert cramers_v(np.full((3, 3), 10)) == 0


def test_layers_that_repeat_each_other_are_told_from_those_that_do_not() -> None:
    rng = np.random.default_rng(0)
    first = rng.integers(0, 8, 4000)
    other = rng.integers(0, 8, 4000)
    swapped = np.where(first < 4, first + 4, first - 4)  # an FFN expert in place of another, and the reverse
    second = rng.integers(0, 4, 4000)  # FFN experts
    table = written_table(np.stack([np.stack([layer, second], -1) for layer in (first, swapped, other)], 1).tolist())
    found = layer_correlation(table)
    assert found.ffn[0, 1] == pytest.approx(-1)
    assert found.first[0, 1] == pytest.approx(1)
    assert abs(found.ffn[0, 2]) < 0.05
    assert found.first[0, 2] < 0.05
    assert found.adjacent_ffn.tolist() == [found.ffn[0, 1], found.ffn[1, 2]]
    assert found.adjacent_first.tolist() == [found.first[0, 1], found.first[1, 2]]
    for matrix in (found.ffn, found.first):
        np.testing.assert_array_equal(matrix, matrix.T)
        np.testing.assert_allclose(matrix.diagonal(), 1)


def test_a_vanilla_models_ffn_experts_correlate_with_nothing() -> None:
    table = random_table(300, layout=ExpertLayout(4, 0, 0, 0))
    found = layer_correlation(replace(table, kept=np.ones_like(table.kept)))
    assert np.isnan(found.ffn).all()
    assert not np.isnan(found.first).any()


def test_loss_is_averaged_by_the_ffn_experts_of_a_token() -> None:
    table = random_table(200)
    found = loss_by_experts(table)
    groups: dict[int, list[float]] = {}
    for token, loss in enumerate(table.loss.tolist()):
        if not math.isnan(loss):
            groups.setdefault(int(table.active("ffn")[token].sum()), []).append(loss)
    assert found.ffn.tolist() == sorted(groups)
    assert found.tokens.tolist() == [len(groups[n]) for n in sorted(groups)]
    assert found.loss.tolist() == pytest.approx([statistics.fmean(groups[n]) for n in sorted(groups)])
    x = [n for n in groups for _ in groups[n]]
    y = [loss for losses in groups.values() for loss in losses]
    assert found.spearman == pytest.approx(_spearman(x, y))


def test_more_experts_for_the_harder_tokens_is_a_rank_correlation_of_one() -> None:
    table = written_table([[[4, 5]], [[0, 5]], [[0, 1]]], loss=[0.1, 5, 6])
    assert loss_by_experts(table).spearman == pytest.approx(1)


def test_a_text_without_a_predicted_token_has_no_relation_to_loss() -> None:
    found = loss_by_experts(written_table([[[0, 1]]], loss=[np.nan]))
    assert found.ffn.tolist() == []
    assert math.isnan(found.spearman)


@pytest.mark.parametrize("edges", [None, [0, 1, 8, 16], [2, 5]])
def test_positions_fall_into_half_open_bins(edges: list[int] | None) -> None:
    table = random_table(200)
    found = by_position(table, edges)
    assert found.edges.tolist() == (edges or list(range(17)))
    ffn = table.active("ffn").mean(axis=1)
    for place in range(len(found.edges) - 1):
        first, end = found.edges[place : place + 2]
        members = [t for t in range(200) if first <= table.position[t] < end]
        assert found.tokens[place] == len(members)
        assert found.ffn[place] == pytest.approx(statistics.fmean(ffn[members]))
        losses = [x for x in table.loss[members].tolist() if not math.isnan(x)]
        assert found.loss[place] == pytest.approx(statistics.fmean(losses) if losses else math.nan, nan_ok=True)


def test_a_bin_without_tokens_is_unknown() -> None:
    found = by_position(random_table(50), [0, 16, 64])
    assert found.tokens.tolist() == [50, 0]
    assert np.isnan([found.ffn[1], found.loss[1]]).all()
    assert by_position(written_table([[[0, 1]]], position=[0], loss=[np.nan])).edges.tolist() == [0, 1]


def test_sets_of_experts_agree_in_any_order() -> None:
    one = written_table([[[0, 1], [2, 3]], [[4, 5], [6, 7]]])
    other = written_table([[[1, 0], [2, 4]], [[4, 5], [7, 6]]])
    assert agreement(one, other).tolist() == [[True, False], [True, True]]


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("tokenizers", {"tokenizer_hash": "other"}),
        ("text", {"text_hash": "other"}),
        ("experts", {"layout": ExpertLayout(5, 1, 1, 1)}),
        ("layers or top-k", {"layers": 2}),
        ("layers or top-k", {"top_k": 1}),
    ],
)
def test_tables_that_cannot_be_compared_are_one_line(what: str, change: dict) -> None:
    message = (
        rf"^the tables of 'some' and 'other' differ in their {what}, so that their choices cannot be compared; make"
    )
    with pytest.raises(DataError, match=message):
        agreement(random_table(), random_table(**change, model="other"))
