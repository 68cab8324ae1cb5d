"""What cannot be resumed, or begun, is refused with one line that names the reason; nothing is touched."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from moepp.errors import ConfigError, DataError, MoEPPError

from .tiny import Crash, Runner, assert_same_run, at_step, crash, logged


@pytest.fixture(scope="module")
def stopped(shared: Runner) -> Path:
    """A run with checkpoints 4 and 8 that stopped before step 10; tests copy it."""
    with at_step(10, crash), pytest.raises(Crash):
        shared.train("stopped")
    return shared.out("stopped")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.tau=0.5"], r"^model\.tau=0\.5 differs from 0\.75, with which \S+checkpoint-8 was trained; resume"),
        (["model.num_hidden_layers=3"], r"^model\.num_hidden_layers=3 differs from 2, "),
        (["model.vanilla=true"], r"^model\.\w+=\S+ differs from \S+, with which "),
        (["seed=1"], r"^seed=1 differs from 0, with which \S+checkpoint-8 was trained; "),
        (["training.per_device_train_batch_size=2"], r"^training \(samples per step\)=2 differs from 4, "),
        (["training.gradient_accumulation_steps=2"], r"^training \(samples per step\)=8 differs from 4, "),
        (["data.sequence_length=16"], r"^data\.sequence_length=16 differs from 32, "),
        (["data.sources[0].weight=1"], r"^data \(weights\)=\[0\.5, 0\.5\] differs from \[0\.75, 0\.25\], "),
        (["data.sources[0].max_bytes=9999"], r"^data \(corpus hash\)='\w+' differs from '\w+', "),
    ],
)
def test_another_model_or_other_data_is_refused(
    runner: Runner, stopped: Path, overrides: list[str], message: str
) -> None:
    shutil.copytree(stopped, runner.out("run"))
    with pytest.raises(ConfigError, match=message) as error:
        runner.train("run", *overrides, fresh=True, resume=True)
    assert "\n" not in str(error.value)
    assert str(error.value).endswith("resume with the same value, or start a new run in another output_dir")
    assert files(runner.out("run")) == files(stopped)


def test_a_checkpoint_from_before_a_field_of_the_model_had_its_default(runner: Runner, stopped: Path) -> None:
    run = runner.out("run")
    shutil.copytree(stopped, run)
    manifest = run / "checkpoint-8" / "manifest.json"
    content = json.loads(manifest.read_text())
    del content["identity"]["model.num_shared_experts"]
    manifest.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"^model\.num_shared_experts=1 differs from 0, with which "):
        runner.train("run", "model.num_shared_experts=1", resume=True)
    runner.train("run", resume=True)


def test_another_tokenizer_is_refused(runner: Runner, stopped: Path, plain: Path) -> None:
    shutil.copytree(stopped, runner.out("run"))
    other = runner.folder / "tokenizer"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        other.mkdir(exist_ok=True)
        shutil.copy(plain / name, other / name)
    text = (other / "tokenizer.json").read_text()
    merges = json.loads(text)["model"]["merges"]
    changed = json.loads(text)
    changed["model"]["merges"] = merges[:-1]
    (other / "tokenizer.json").write_text(json.dumps(changed))
    with pytest.raises(ConfigError, match=r"^tokenizer \(hash\)='\w+' differs from '\w+', "):
        runner.train("run", f"tokenizer.path={other}", fresh=True, resume=True)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def garble(path: Path) -> None:
    path.write_text("{")


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        ("__0_0.distcp", truncate, r"__0_0\.distcp has 1000 bytes instead of \d+"),
        ("__0_0.distcp", flip, r"__0_0\.distcp does not match its checksum"),
        ("__0_0.distcp", Path.unlink, r"__0_0\.distcp is missing"),
        (".metadata", flip, r"\.metadata does not match its checksum"),
        ("rng.pt", flip, r"rng\.pt does not match its checksum"),
        ("schedule.json", Path.unlink, r"schedule\.json is missing"),
        ("trainer_state.json", garble, r"trainer_state\.json has 1 bytes instead of \d+"),
        ("manifest.json", Path.unlink, r"manifest\.json is missing"),
        ("manifest.json", garble, r"manifest\.json cannot be read"),
        ("manifest.json", lambda path: path.write_text("[]"), r"manifest\.json cannot be read"),
        ("manifest.json", lambda path: path.write_bytes(b"\xff"), r"manifest\.json cannot be read"),
    ],
)
def test_a_damaged_checkpoint_is_refused_by_name_and_the_one_before_it_offered(
    runner: Runner, stopped: Path, plain: Path, name: str, damage: Any, reason: str
) -> None:
    run = runner.out("run")
    shutil.copytree(stopped, run)
    damage(run / "checkpoint-8" / name)
    offer = r"resume from the one before it: --resume-from (\S+checkpoint-4)"
    with pytest.raises(DataError, match=rf"^checkpoint \S+checkpoint-8 is damaged: {reason}; {offer}$") as error:
        runner.train("run", resume=True)
    if name == "schedule.json":  # once is enough: what is offered works, and replaces the damaged one
        match = re.search(offer, str(error.value))
        assert match
        runner.train("run", resume=Path(match[1]))
        assert_same_run(run, plain)


def test_when_no_earlier_checkpoint_is_whole_none_is_offered(runner: Runner, stopped: Path) -> None:
    run = runner.out("run")
    shutil.copytree(stopped, run)
    for step in (4, 8):
        (run / f"checkpoint-{step}" / "schedule.json").unlink()
    with pytest.raises(
        DataError, match=r"checkpoint-8 is damaged: schedule\.json is missing; no earlier checkpoint is"
    ):
        runner.train("run", resume=True)


def test_a_folder_that_is_no_checkpoint_is_refused(runner: Runner, stopped: Path) -> None:
    run = runner.out("run")
    shutil.copytree(stopped, run)
    for folder in (run, run / "tensorboard"):
        with pytest.raises(DataError, match=rf"^checkpoint {folder} is damaged: manifest\.json is missing; "):
            runner.train("run", resume=folder)
    with pytest.raises(DataError, match=r"^checkpoint \S+checkpoint-99 does not exist; check the path$"):
        runner.train("run", resume=run / "checkpoint-99")


def test_nothing_to_resume_from_is_said_with_what_to_do(runner: Runner) -> None:
    with pytest.raises(DataError, match=r"^output_dir='\S+run' has no checkpoint to resume from; start without --res"):
        runner.train("run", resume=True)
    runner.out("run").mkdir()
    (runner.out("run") / "of-somebody-else").touch()
    with pytest.raises(DataError, match=r"has no checkpoint to resume from; remove it and start without --resume$"):
        runner.train("run", resume=True)


def test_a_run_that_ended_before_its_first_checkpoint_begins_again(runner: Runner) -> None:
    with at_step(2, crash), pytest.raises(Crash):
        runner.train("run")
    runner.train("run", "training.max_steps=3", resume=True)
    assert [entry["step"] for entry in logged(runner.out("run"))] == [1, 2, 3]


def test_an_output_folder_in_use_is_refused_and_left_alone(runner: Runner, stopped: Path) -> None:
    run = runner.out("run")
    shutil.copytree(stopped, run)
    message = r"^output_dir='\S+run' is already in use; choose another, remove it, or continue its run with --resume$"
    with pytest.raises(ConfigError, match=message):
        runner.train("run")
    assert files(run) == files(stopped)
    (runner.folder / "file").write_text("")
    with pytest.raises(ConfigError, match=r"^output_dir='\S+file' is already in use; "):
        runner.train("file")


def test_a_recipe_that_is_refused_leaves_no_folder_behind(runner: Runner) -> None:
    """Else the corrected recipe would find its output folder in use."""
    for override in ("training.optim=none", "model.max_position_embeddings=16", "model.vocab_size=10"):
        with pytest.raises(MoEPPError):
            runner.train("run", override, fresh=True)
        assert not runner.out("run").exists()


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
