"""Averages, with and without the tasks on which guessing does as well."""

import dataclasses
import math

import pytest

from moepp.evaluate import Evaluation, Score, Skipped

SCORE = Score(
    task="task",
    label="task",
    metric="acc",
    score=0.5,
    standard_error=0.02,
    chance=0.25,
    shots=0,
    items=100,
    requests_cut=0,
    ffn_per_token=1.2,
    tokens=1000,
    metrics={},
    baselines={},
    published=None,
)


def score(**changes: object) -> Score:
    return dataclasses.replace(SCORE, **changes)


@pytest.mark.parametrize(
    ("value", "error", "near"),
    [(0.31, 0.02, False), (0.29, 0.02, True), (0.25, 0.0, True), (0.10, 0.02, True), (0.26, None, False)],
)
def test_near_chance_is_two_standard_errors_above_it_or_less(value: float, error: float | None, near: bool) -> None:
    assert score(score=value, standard_error=error).near_chance is near


def test_the_averages() -> None:
    scores = [score(score=0.7), score(score=0.26), score(score=0.45), score(metric="perplexity", score=31.0)]
    evaluation = Evaluation(scores, [Skipped("gone", "gone", "no data")])
    assert evaluation.average() == pytest.approx(0.47)
    assert evaluation.average_above_chance() == pytest.approx(0.575)
    assert evaluation.average_standard_error() == pytest.approx(math.sqrt(3 * 0.02**2) / 3)


def test_there_is_no_average_of_nothing() -> None:
    nothing = Evaluation([], [Skipped("gone", "gone", "no data")])
    assert nothing.average() is nothing.average_above_chance() is nothing.average_standard_error() is None
    guessing = Evaluation([score(score=0.25)], [])
    assert guessing.average() == 0.25
    assert guessing.average_above_chance() is None
