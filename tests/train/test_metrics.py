"""What a run logs: every promised number, in metrics.jsonl, TensorBoard and on the console, each recomputed."""

import json
import math
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

import moepp.train.callbacks
import moepp.train.metrics
from moepp import RoutingStats
from moepp.config import EXPERT_TYPES
from moepp.errors import DataError
from moepp.train import Prepared, train
from moepp.train.callbacks import METRICS_FILE, MetricsFile, StepClock, training_line, validation_line
from moepp.train.metrics import on_cpu

from .tiny import Runner, at_step, logged

TOKENS = 4 * 32  # of a step

PROMISED = {
    *("loss", "lm_loss", "balance_loss", "ffn_per_token", "load_imbalance"),
    *("grad_norm", "learning_rate", "tokens_per_second"),
    *(f"share/{kind}" for kind in EXPERT_TYPES),
    *(f"dropped/{kind}" for kind in EXPERT_TYPES),
    *(
        f"layer_{index}/{name}"
        for index in (0, 1)
        for name in ("balance_loss", "ffn_per_token", "ffn_share", "load_imbalance")
    ),
}
VALIDATED = {f"eval_{name}{what}" for name in ("", "prose_", "code_") for what in ("loss", "bits_per_byte")}


@pytest.fixture(scope="module")
def prepared(shared: Runner, plain: Path) -> Prepared:
    return shared.prepared(shared.recipe("plain"))


def test_every_step_has_every_promised_number(plain: Path) -> None:
    entries = logged(plain)
    assert [entry["step"] for entry in entries] == list(range(1, 13))
    for entry in entries:
        assert entry.keys() >= PROMISED
        assert all(math.isfinite(entry[name]) for name in PROMISED)


def test_logged_numbers_agree_with_each_other(plain: Path) -> None:
    for entry in logged(plain):
        assert sum(entry[f"share/{kind}"] for kind in EXPERT_TYPES) == pytest.approx(1)
        assert entry["loss"] == pytest.approx(entry["lm_loss"] + 0.01 * entry["balance_loss"], rel=1e-5)
        layers = [entry[f"layer_{index}/balance_loss"] for index in (0, 1)]
        assert entry["balance_loss"] == pytest.approx(sum(layers))
        for mean in ("ffn_per_token", "share/ffn"):
            name = mean.replace("share/ffn", "ffn_share")
            assert entry[mean] == pytest.approx(sum(entry[f"layer_{index}/{name}"] for index in (0, 1)) / 2)
        # top-2: what is neither dropped nor elsewhere went through an FFN expert.
        assert 0 <= entry["ffn_per_token"] <= 2 * entry["share/ffn"] + 1e-9
        assert entry["load_imbalance"] == max(entry[f"layer_{index}/load_imbalance"] for index in (0, 1))
        assert 1 <= entry["load_imbalance"] <= 3


def test_what_is_logged_over_several_steps_is_their_mean(runner: Runner, plain: Path) -> None:
    runner.train("six", "training.logging_steps=6")
    windows, steps = logged(runner.out("six")), logged(plain)
    assert [entry["step"] for entry in windows] == [6, 12]
    means = ["loss", "lm_loss", "balance_loss", "layer_1/balance_loss", "ffn_per_token", "share/ffn", "share/zero"]
    for window, part in zip(windows, (steps[:6], steps[6:]), strict=True):
        for key in means:  # steps have equally many tokens, so that counts over the window are means, too
            assert window[key] == pytest.approx(sum(step[key] for step in part) / 6, rel=1e-5), key


def test_routing_is_counted_once_a_layer_and_step_and_fetched_once_a_log(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted, fetched = [], []
    of, on_cpu = RoutingStats.of, moepp.train.metrics.on_cpu
    monkeypatch.setattr(RoutingStats, "of", lambda *args, **kwargs: counted.append(1) or of(*args, **kwargs))
    monkeypatch.setattr(moepp.train.metrics, "on_cpu", lambda tensors: fetched.append(1) or on_cpu(tensors))
    runner.train(
        "once",
        "training.max_steps=4",
        "training.logging_steps=2",
        "data.validation_fraction=0",
    )
    assert (len(counted), len(fetched)) == (2 * 4, 2)


def test_numbers_of_different_types_are_fetched_together_and_exactly() -> None:
    tensors = [
        torch.tensor(2**60 + 1),
        torch.tensor([1.5, -0.1]),
        torch.tensor([[3], [4]]).int(),
        torch.rand(3).double(),
    ]
    for fetched, tensor in zip(on_cpu(tensors), tensors, strict=True):
        assert fetched.dtype == tensor.dtype
        assert torch.equal(fetched, tensor)


def test_without_capacity_nothing_is_dropped_and_every_choice_counts(runner: Runner) -> None:
    runner.train("dropless", "model.capacity_factor=null", "training.max_steps=2")
    for entry in logged(runner.out("dropless")):
        assert [entry[f"dropped/{kind}"] for kind in EXPERT_TYPES] == [0, 0, 0, 0]
        assert entry["ffn_per_token"] == pytest.approx(2 * entry["share/ffn"])


def test_expert_types_that_the_model_lacks_are_not_logged(runner: Runner) -> None:
    runner.train("vanilla", "model.vanilla=true", "training.max_steps=1")
    (entry,) = logged(runner.out("vanilla"))
    assert {name for name in entry if name.startswith(("share/", "dropped/"))} == {"share/ffn", "dropped/ffn"}


def test_validation_comes_when_asked_for_and_at_the_last_step(plain: Path, runner: Runner) -> None:
    assert [entry["step"] for entry in logged(plain, "eval_loss")] == [6, 12]
    result = runner.train("last", "training.max_steps=2", "training.eval_steps=100")
    (entry,) = logged(runner.out("last"), "eval_loss")
    assert entry["step"] == 2
    assert result.metrics == {name: entry[name] for name in VALIDATED}


def test_validation_losses_are_the_texts_alone_without_the_balance_loss(plain: Path, prepared: Prepared) -> None:
    entry = logged(plain, "eval_loss")[-1]
    model: Any = AutoModelForCausalLM.from_pretrained(plain).eval()
    losses = {}
    for name, data in prepared.data.validation.items():
        ids = torch.stack([sample["input_ids"] for sample in data])
        with torch.no_grad():
            logits = model(input_ids=ids).logits
        losses[name] = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).item()
        assert entry[f"eval_{name}_loss"] == pytest.approx(losses[name], rel=1e-5)
    assert entry["eval_loss"] == pytest.approx(0.75 * losses["prose"] + 0.25 * losses["code"], rel=1e-5)


def test_bits_per_byte_count_the_bytes_of_the_held_out_text(plain: Path, prepared: Prepared) -> None:
    entry = logged(plain, "eval_loss")[-1]
    tokenizer = AutoTokenizer.from_pretrained(plain)
    ratio = {}
    for source in prepared.corpus.sources:
        tokens = sum(len(tokenizer(text)["input_ids"]) + 1 for text in source.validation)  # and the end of the text
        ratio[source.name] = sum(len(text.encode()) for text in source.validation) / tokens
        bits = entry[f"eval_{source.name}_loss"] / math.log(2) / ratio[source.name]
        assert entry[f"eval_{source.name}_bits_per_byte"] == pytest.approx(bits)
    mixed = entry["eval_loss"] / math.log(2) / (0.75 * ratio["prose"] + 0.25 * ratio["code"])
    assert entry["eval_bits_per_byte"] == pytest.approx(mixed)


def test_tensorboard_gets_the_same_numbers(plain: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(plain / "tensorboard")).Reload()
    for name in PROMISED:
        scalars = [(event.step, event.value) for event in events.Scalars(f"train/{name}")]
        assert scalars == [(entry["step"], pytest.approx(entry[name], rel=1e-5)) for entry in logged(plain)]
    for name in VALIDATED:
        scalars = [(event.step, event.value) for event in events.Scalars(f"eval/{name.removeprefix('eval_')}")]
        assert scalars == [(e["step"], pytest.approx(e[name], rel=1e-5)) for e in logged(plain, "eval_loss")]


def test_a_finished_run_leaves_these_files_and_no_other(plain: Path) -> None:
    assert {path.name for path in plain.iterdir()} == {
        *("config.json", "generation_config.json", "model.safetensors", "configuration_moepp.py", "modeling_moepp.py"),
        *("tokenizer.json", "tokenizer_config.json"),
        *("README.md", "recipe.yaml", "data.json", METRICS_FILE, "tensorboard"),
        *("checkpoint-4", "checkpoint-8", "checkpoint-12"),
    }


def test_only_the_newest_checkpoints_are_kept(runner: Runner) -> None:
    runner.train("two", "training.save_steps=2", "training.save_total_limit=2", "training.max_steps=7")
    assert {path.name for path in runner.out("two").glob("checkpoint-*")} == {"checkpoint-6", "checkpoint-7"}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(moepp.train.callbacks, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    return now


def test_tokens_per_second_count_the_optimizer_but_neither_validation_nor_saving(
    runner: Runner, clock: list[float]
) -> None:
    def passing(seconds: float) -> Any:
        return lambda seen: clock.__setitem__(0, clock[0] + seconds)

    with (
        at_step(None, passing(2), "on_pre_optimizer_step"),
        at_step(None, passing(100), "on_save"),
        at_step(None, passing(100), "on_evaluate"),
    ):
        runner.train("timed", "training.max_steps=4", "training.save_steps=1", "training.eval_steps=1")
    assert [entry["tokens_per_second"] for entry in logged(runner.out("timed"))] == [TOKENS / 2] * 4


def test_the_clock_starts_anew_when_it_is_read(clock: list[float]) -> None:
    watch, nothing = StepClock(), SimpleNamespace()
    for _ in range(2):
        watch.start()
        clock[0] += 3
        watch.on_step_end(nothing, nothing, nothing)  # pyright: ignore[reportArgumentType]
        clock[0] += 5
    assert (watch.take(), watch.take()) == (6, 0)


def test_off_a_terminal_the_console_shows_one_line_a_logging_step(runner: Runner) -> None:
    out = StringIO()
    recipe = runner.recipe("console", "training.max_steps=2", "training.eval_steps=2")
    train(recipe, prepared=runner.prepared(recipe), console=Console(file=out, width=80), label="[x] run")
    lines = out.getvalue().splitlines()
    assert len(lines) == 3
    step, validation = logged(runner.out("console"))[0], logged(runner.out("console"), "eval_loss")[0]
    assert lines[0] == f"[x] run     1/2  {training_line(step)}"
    assert lines[2] == f"[x] run     2/2  {validation_line(validation)}"
    assert f"lm {step['lm_loss']:.4f}" in lines[0]
    assert f"prose {validation['eval_prose_bits_per_byte']:.3f}" in lines[2]


def test_on_a_terminal_there_is_one_bar_with_the_time_left(runner: Runner) -> None:
    out = StringIO()
    recipe = runner.recipe("terminal", "training.max_steps=2", "training.logging_steps=2")
    console = Console(file=out, width=120, force_terminal=True, color_system=None, _environ={"TERM": "xterm"})
    train(recipe, prepared=runner.prepared(recipe), console=console, label="moepp")
    assert "2/2" in out.getvalue()
    assert " left " in out.getvalue()


def test_what_a_killed_run_logged_after_its_checkpoint_is_forgotten(tmp_path: Path) -> None:
    file = tmp_path / METRICS_FILE
    lines = [json.dumps({"step": step}) + "\n" for step in (1, 2, 3)]
    file.write_text("".join(lines) + '{"step": 4, "lo')  # killed while writing
    state: Any = SimpleNamespace(global_step=2)
    nothing: Any = None
    MetricsFile(tmp_path).on_train_begin(nothing, state, nothing)
    assert file.read_text() == "".join(lines[:2])


def test_a_failed_rewrite_of_the_metrics_loses_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / METRICS_FILE
    file.write_text('{"step": 1}\n{"step": 2}\n')

    def full(path: Path, text: str, **_: Any) -> None:
        path.open("w").close()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    state: Any = SimpleNamespace(global_step=1)
    nothing: Any = None
    with pytest.raises(DataError, match=r"^metrics\.jsonl could not be written to .*No space left on device"):
        MetricsFile(tmp_path).on_train_begin(nothing, state, nothing)
    assert file.read_text() == '{"step": 1}\n{"step": 2}\n'
    assert list(tmp_path.iterdir()) == [file]


def test_a_number_that_is_not_finite_is_null_in_the_metrics(tmp_path: Path) -> None:
    state: Any = SimpleNamespace(global_step=1)
    nothing: Any = None
    MetricsFile(tmp_path).on_log(nothing, state, nothing, logs={"a": float("nan"), "b": float("inf"), "c": 1.0})
    assert json.loads((tmp_path / METRICS_FILE).read_text()) == {"step": 1, "a": None, "b": None, "c": 1.0}
