"""Load, experts per token and token type, balance and drops: against loops over single choices, and by hand."""

import math
import statistics
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moepp.analyze import (
    Document,
    RoutingTable,
    dropped,
    expert_load,
    experts_per_token,
    imbalance,
    load_aim,
    summarize,
    token_types,
)
from moepp.analyze.tables import Grouping
from moepp.config import EXPERT_TYPES, ExpertLayout, ExpertType

from .factory import LAYOUT, random_table, written_table

VANILLA = ExpertLayout(ffn=4, constant=0, copy=0, zero=0)
tables = st.builds(
    random_table,
    st.integers(1, 130),
    st.integers(1, 3),
    st.integers(1, 3),
    seed=st.integers(0, 99),
    layout=st.sampled_from([LAYOUT, VANILLA]),
)
STUDENT = {4: 2.7764, 5: 2.5706, 6: 2.4469, 7: 2.3646, 8: 2.3060, 9: 2.2622, 19: 2.0930, 29: 2.0452}
few = settings(max_examples=25, deadline=None)


def group_of(table: RoutingTable, token: int, by: Grouping) -> str:
    document = table.documents[table.document[token]]
    return {"all": "all", "source": document.source, "document": document.name}[by]


def active(table: RoutingTable, token: int, layer: int, kind: ExpertType) -> int:
    choices = zip(table.expert[token, layer].tolist(), table.kept[token, layer].tolist(), strict=True)
    return sum(kept and table.layout.type_of(expert) == kind for expert, kept in choices)


@few
@given(table=tables, by=st.sampled_from(["all", "source", "document"]))
def test_load_is_what_a_loop_over_choices_counts(table: RoutingTable, by: Grouping) -> None:
    load = expert_load(table, by)
    expected = np.zeros_like(load.count)
    for token, layer, slot in np.ndindex(*table.expert.shape):
        group = load.groups.index(group_of(table, token, by))
        expected[group, layer, table.expert[token, layer, slot]] += 1
    np.testing.assert_array_equal(load.count, expected)
    np.testing.assert_allclose(load.share.sum(axis=-1), 1)
    np.testing.assert_allclose(load.share * load.count.sum(axis=-1, keepdims=True), load.count)


@few
@given(table=tables, by=st.sampled_from(["all", "source", "document"]), kind=st.sampled_from(EXPERT_TYPES))
def test_experts_per_token_are_those_a_loop_finds(table: RoutingTable, by: Grouping, kind: ExpertType) -> None:
    found = experts_per_token(table, kind, by)
    for place, group in enumerate(found.groups):
        members = [token for token in range(table.num_tokens) if group_of(table, token, by) == group]
        assert found.tokens[place] == len(members)
        for layer in range(table.num_layers):
            mean = statistics.fmean(active(table, token, layer, kind) for token in members)
            assert found.layers[place, layer] == pytest.approx(mean)
        assert found.mean[place] == pytest.approx(statistics.fmean(found.layers[place]))


@few
@given(table=tables, kind=st.sampled_from(EXPERT_TYPES), min_count=st.integers(1, 8))
def test_token_types_are_those_a_loop_finds(table: RoutingTable, kind: ExpertType, min_count: int) -> None:
    values: dict[int, list[float]] = {}
    for token, id_ in enumerate(table.token.tolist()):
        each = [active(table, token, layer, kind) for layer in range(table.num_layers)]
        values.setdefault(id_, []).append(statistics.fmean(each))
    found = token_types(table, kind, min_count=min_count)
    assert set(found.token.tolist()) == {id_ for id_, some in values.items() if len(some) >= min_count}
    assert found.mean.tolist() == sorted(found.mean.tolist(), reverse=True)
    rows = zip(found.token.tolist(), found.text, found.count, found.mean, found.low, found.high, strict=True)
    for id_, text, count, mean, low, high in rows:
        some = values[id_]
        assert (text, count) == (f"t{id_}", len(some))
        assert mean == pytest.approx(statistics.fmean(some))
        if count < 5:
            assert math.isnan(low)
            assert math.isnan(high)
        elif count - 1 in STUDENT:
            error = STUDENT[count - 1] * statistics.stdev(some) / math.sqrt(count)
            ends = max(0, mean - error), min(table.top_k, mean + error)
            assert (low, high) == pytest.approx(ends, rel=1e-3, abs=1e-3)


def test_token_types_of_one_mean_stand_in_the_order_of_their_ids() -> None:
    table = written_table([[[0, 1]]] * 15, token=[9, 3, 5, 3, 9, 5] * 2 + [3, 5, 9])
    table = replace(table, vocabulary={3: "c", 5: "e", 9: "i"})
    found = token_types(table, min_count=2)
    assert (found.text, found.count.tolist(), found.mean.tolist()) == (("c", "e", "i"), [5, 5, 5], [2, 2, 2])
    assert found.low.tolist() == found.high.tolist() == [2, 2, 2]


def test_an_interval_is_students_and_stays_within_what_a_token_can_have() -> None:
    # Four tokens of two FFN experts and one of none: 1.6 ± 2.776 · 0.894 / √5, which goes beyond 2.
    found = token_types(written_table([[[0, 1]]] * 4 + [[[4, 5]]], token=[3] * 5))
    assert (found.count.tolist(), found.mean.tolist()) == ([], [])
    found = token_types(written_table([[[0, 1]]] * 4 + [[[4, 5]]], token=[3] * 5), min_count=5)
    assert found.low.tolist() == pytest.approx([1.6 - 2.7764 * 0.4], rel=1e-3)
    assert found.high.tolist() == [2]


@pytest.mark.parametrize(("tokens", "least"), [([3] * 6 + [5] * 4, 5), ([3, 3, 5, 7], 2), ([3, 5, 7], 1)])
def test_a_rare_token_type_is_ranked_only_where_no_other_is_left(tokens: list[int], least: int) -> None:
    table = replace(written_table([[[0, 1]]] * len(tokens), token=tokens), vocabulary={3: "c", 5: "e", 7: "g"})
    assert summarize(table).least == least


def test_shared_experts_are_work_that_nothing_saves() -> None:
    table = written_table([[[0, 4]], [[4, 5]]])
    assert summarize(table).saved == pytest.approx(1.5 / 2)
    assert summarize(replace(table, facts=replace(table.facts, shared_experts=1))).saved == pytest.approx(1.5 / 3)


def test_a_group_without_tokens_is_unknown_not_zero() -> None:
    table = written_table([[[0, 4]]] * 3)
    table = replace(table, documents=(Document("d0", "a"), Document("nothing", "b")))
    assert np.isnan(experts_per_token(table, by="source").mean).tolist() == [False, True]
    assert np.isnan(expert_load(table, "document").share).any(axis=(1, 2)).tolist() == [False, True]


def test_choices_of_nobody_are_no_load() -> None:
    nobody = LAYOUT.num_experts
    load = expert_load(written_table([[[0, nobody]], [[nobody, nobody]], [[0, 7]]]))
    assert load.count[0, 0].tolist() == [2, 0, 0, 0, 0, 0, 0, 1]


def test_a_balanced_load_is_on_its_aim() -> None:
    # tau .5: a zero-computation expert takes two choices where an FFN expert takes one.
    choices = [[[0, 4]], [[1, 4]], [[2, 5]], [[3, 5]], [[6, 7]], [[6, 7]]]
    table = written_table(choices)
    assert load_aim(LAYOUT, 0.5).tolist() == pytest.approx([1 / 12] * 4 + [1 / 6] * 4)
    found = imbalance(table)
    for name in ("ffn_max", "all_max"):
        assert getattr(found, name).tolist() == pytest.approx([1])
    for name in ("ffn_variation", "all_variation"):
        assert getattr(found, name).tolist() == pytest.approx([0])


def test_imbalance_by_hand() -> None:
    # FFN loads 3, 1, 0, 0: max/mean 3; deviations 2, 0, -1, -1 of a mean of 1.
    found = imbalance(written_table([[[0, 7]], [[0, 7]], [[0, 7]], [[1, 7]]]))
    assert found.ffn_max.tolist() == pytest.approx([3])
    assert found.ffn_variation.tolist() == pytest.approx([math.sqrt((4 + 0 + 1 + 1) / 4)])
    # All: shares 3/8, 1/8 and 1/2 of aims 1/12, 1/12 and 1/6.
    assert found.all_max.tolist() == pytest.approx([4.5])
    squares = [3.5**2, 0.5**2, 1, 1, 1, 1, 1, 2**2]
    assert found.all_variation.tolist() == pytest.approx([math.sqrt(sum(squares) / 8)])


@few
@given(table=tables)
def test_ffn_imbalance_is_max_over_mean_and_the_coefficient_of_variation(table: RoutingTable) -> None:
    found = imbalance(table)
    for layer in range(table.num_layers):
        load = [int((table.expert[:, layer] == expert).sum()) for expert in table.layout.indices("ffn")]
        if not sum(load):
            assert np.isnan([found.ffn_max[layer], found.ffn_variation[layer]]).all()
            continue
        assert found.ffn_max[layer] == pytest.approx(max(load) / statistics.fmean(load))
        assert found.ffn_variation[layer] == pytest.approx(statistics.pstdev(load) / statistics.fmean(load), abs=1e-9)


@few
@given(table=tables)
def test_dropped_shares_are_those_a_loop_finds(table: RoutingTable) -> None:
    found = dropped(table)
    asked, lost = np.zeros((table.num_layers, 4)), np.zeros((table.num_layers, 4))
    for token, layer, slot in np.ndindex(*table.expert.shape):
        column = EXPERT_TYPES.index(table.layout.type_of(int(table.expert[token, layer, slot])))
        asked[layer, column] += 1
        lost[layer, column] += not table.kept[token, layer, slot]
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(found.layers, lost / asked)
        np.testing.assert_allclose(found.overall, lost.sum(axis=0) / asked.sum(axis=0))
    assert found.total == pytest.approx(lost.sum() / asked.sum())
    assert found.types == EXPERT_TYPES
