import time
from dataclasses import replace
from io import StringIO
from pathlib import Path
from unittest import mock

import pytest
from rich.console import Console

from experiments import pool as pool_module
from experiments.pool import Pool
from experiments.record import RECORD_FILE, Record
from experiments.runs import Run
from experiments.scales import SCALES
from experiments.variants import LONG_CONTEXT, MOEPP, SAME_EXPERT_FLOPS, THIN, VANILLA, with_tau
from moepp.errors import DataError
from moepp.model import load_model
from moepp.train import checkpoints
from moepp.train.diverged import TrainingDiverged

from .toy import toy_scale


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pool, list[Run]]:
    folder = tmp_path_factory.mktemp("pool")
    scale = toy_scale(folder / "scale")
    runs = [Run(scale, MOEPP, 0), Run(scale, VANILLA, 0)]
    pool = Pool(folder / "pool", console=Console(file=StringIO()))
    assert pool.fill(runs)
    return pool, runs


def test_a_record_counts_what_training_did(filled: tuple[Pool, list[Run]]) -> None:
    pool, (moepp, vanilla) = filled
    ours, theirs = pool.record(moepp), pool.record(vanilla)
    recipe = moepp.recipe()
    assert ours.tokens == theirs.tokens == 6 * 4 * 32
    one_expert = 3 * 2 * 3 * 32 * recipe.model["intermediate_size"]  # forward and backward, 3 matrices, multiply-add
    assert theirs.expert_flops == pytest.approx(theirs.tokens * 2 * 2 * one_expert)  # 2 layers, top-2
    assert 0 < ours.expert_flops < theirs.expert_flops
    assert ours.ffn_share_target == pytest.approx(0.6)
    assert theirs.ffn_share == [1.0, 1.0]
    assert theirs.ffn_per_token == pytest.approx(2.0)
    assert all(sum(layer) == pytest.approx(1.0) for layer in ours.load)
    assert set(ours.source_loss) == {"topics", "wrapped"}
    assert ours.parameters == load_model(pool.path(moepp)).num_parameters()


def test_what_is_there_is_not_trained_again(filled: tuple[Pool, list[Run]]) -> None:
    pool, runs = filled
    with mock.patch.object(pool_module, "train") as train:
        assert pool.fill(runs)
    train.assert_not_called()


def test_a_finished_run_keeps_its_model_and_no_checkpoint(filled: tuple[Pool, list[Run]]) -> None:
    pool, runs = filled
    assert all(not checkpoints(pool.path(run)) for run in runs)


def test_a_run_that_another_process_trains_is_left_to_it(filled: tuple[Pool, list[Run]], tmp_path: Path) -> None:
    _, (moepp, _) = filled
    first, second = Pool(tmp_path), Pool(tmp_path, deadline=time.monotonic() + 0.3)
    with first._locked(moepp) as mine, mock.patch.object(pool_module, "train") as train:
        assert mine
        assert not second.fill([moepp])
    train.assert_not_called()


class Late(Pool):
    """Whose time is up at the second step of the first run."""

    questions = 0

    def late(self) -> bool:
        self.questions += 1
        return self.deadline is not None and self.questions > 4


def test_a_run_that_the_deadline_stopped_goes_on(filled: tuple[Pool, list[Run]], tmp_path: Path) -> None:
    reference, (moepp, _) = filled
    late = Late(tmp_path, deadline=0, console=Console(file=StringIO()))
    assert not late.fill([moepp])
    assert [path.name for path in checkpoints(late.path(moepp))] == ["checkpoint-2"]
    late.deadline = None
    assert late.fill([moepp])
    ours, theirs = late.record(moepp), reference.record(moepp)
    assert ours.loss == theirs.loss
    assert ours.expert_flops == theirs.expert_flops
    assert ours.seconds > 0
    assert not checkpoints(late.path(moepp))


def test_a_long_run_ends_at_the_deadline(filled: tuple[Pool, list[Run]], tmp_path: Path) -> None:
    _, (moepp, _) = filled
    long = replace(moepp, variant=replace(moepp.variant, length=2000.0))
    pool = Pool(tmp_path, deadline=time.monotonic() + 2)
    began = time.monotonic()
    assert not pool.fill([long])
    assert time.monotonic() - began < 30  # all of it takes minutes
    assert checkpoints(pool.path(long))
    assert not pool.done(long)


def test_a_run_that_diverges_is_recorded_and_not_tried_again(filled: tuple[Pool, list[Run]], tmp_path: Path) -> None:
    _, (moepp, _) = filled
    pool = Pool(tmp_path, console=Console(file=StringIO()))
    with mock.patch.object(pool_module, "train", side_effect=TrainingDiverged("not finite at step 3")):
        assert pool.fill([moepp])
    assert pool.record(moepp).failure == "not finite at step 3"
    left = pool.path(moepp) / "checkpoint-2"
    left.mkdir()
    assert pool.fill([moepp])
    assert not left.exists()


def test_a_damaged_record_is_named(filled: tuple[Pool, list[Run]], tmp_path: Path) -> None:
    (tmp_path / RECORD_FILE).write_text("{")
    with pytest.raises(DataError, match=r"record\.json is damaged: .*; remove the folder"):
        Record.read(tmp_path)


def test_a_key_names_the_recipe_and_the_text(tmp_path: Path) -> None:
    scale, other = toy_scale(tmp_path / "a"), toy_scale(tmp_path / "b")
    keys = [Run(scale, variant, seed).key() for variant in (MOEPP, VANILLA, SAME_EXPERT_FLOPS) for seed in (0, 1)]
    assert len(set(keys)) == 6
    assert Run(scale, with_tau(0.75), 0).key() == keys[0]
    with (tmp_path / "b" / "texts" / "topic-0.txt").open("a") as text:
        text.write("more")
    assert Run(other, MOEPP, 0).key() != keys[0]


@pytest.mark.parametrize("name", ["small", "gpu"])
def test_the_larger_scales_have_recipes(name: str) -> None:
    runs = [Run(SCALES[name], variant, 0) for variant in (SAME_EXPERT_FLOPS, THIN, LONG_CONTEXT)]
    for run in runs:
        assert run.recipe().model_config().hidden_size == {"small": 256, "gpu": 512}[name]
    assert runs[-1].recipe().data.sequence_length == 8192


def test_a_narrower_expert_has_a_multiple_of_eight(tmp_path: Path) -> None:
    assert Run(toy_scale(tmp_path / "a"), THIN, 0).recipe().model["intermediate_size"] == 24
