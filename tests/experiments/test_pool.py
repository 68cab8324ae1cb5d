import time
from io import StringIO
from pathlib import Path
from unittest import mock

import pytest
from rich.console import Console

from experiments import pool as pool_module
from experiments.pool import Pool
from experiments.record import RECORD_FILE, Record
from experiments.runs import Run
from experiments.variants import MOEPP, SAME_EXPERT_FLOPS, THIN, VANILLA, with_tau
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
    first, second = Pool(tmp_path), Pool(tmp_path)
    with first._locked(moepp) as mine, mock.patch.object(pool_module, "train") as train:
        assert mine
        assert not second.fill([moepp])
    train.assert_not_called()


def test_a_run_that_the_deadline_stopped_goes_on(filled: tuple[Pool, list[Run]], tmp_path: Path) -> None:
    reference, (moepp, _) = filled
    late = Pool(tmp_path, deadline=time.monotonic() + 3600)
    real = pool_module.train

    def stopped_at_once(*args, **kwargs):
        late.deadline = time.monotonic()
        return real(*args, **kwargs)

    def stops_soon(deadline):
        return pool_module.contextmanager(_signalled_in_training)()

    with (
        mock.patch.object(pool_module, "train", stopped_at_once),
        mock.patch.object(pool_module, "_stopped_at", stops_soon),
    ):
        assert not late.fill([moepp])
    assert checkpoints(late.path(moepp))
    late.deadline = None
    assert late.fill([moepp])
    assert late.record(moepp).loss == reference.record(moepp).loss


def _signalled_in_training():
    from moepp.train.callbacks import Interrupts

    before = Interrupts.on_step_end

    def on_step_end(self, args, state, control, **kwargs):
        self.received = 15
        before(self, args, state, control, **kwargs)

    with mock.patch.object(Interrupts, "on_step_end", on_step_end):
        yield


def test_a_run_that_diverges_is_recorded_and_not_tried_again(filled: tuple[Pool, list[Run]], tmp_path: Path) -> None:
    _, (moepp, _) = filled
    pool = Pool(tmp_path, console=Console(file=StringIO()))
    with mock.patch.object(pool_module, "train", side_effect=TrainingDiverged("not finite at step 3")):
        assert pool.fill([moepp])
    assert pool.record(moepp).failure == "not finite at step 3"


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


def test_a_narrower_expert_has_a_multiple_of_eight(tmp_path: Path) -> None:
    assert Run(toy_scale(tmp_path / "a"), THIN, 0).recipe().model["intermediate_size"] == 24
