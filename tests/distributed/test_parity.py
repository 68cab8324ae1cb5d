"""The same recipe on 1, 2 and 4 processes, however they share the model: the same losses, gradients and weights."""

from pathlib import Path
from typing import Any

import pytest

from ..tolerances import assert_close
from ..train.tiny import write_texts
from .runs import SECONDS, train_on

LAYOUTS = {
    "two copies": (2, "distributed.replicate_size=2"),
    "sharded over 2": (2, "distributed.fsdp_size=2"),
    "sharded over 4": (4, "distributed.fsdp_size=4"),
    "2 copies sharded over 2": (4, "distributed.replicate_size=2"),
    "experts over 2": (2, "distributed.ep_size=2"),
    "experts over 2 of 4": (4, "distributed.ep_size=2"),
    "experts over 4": (4, "distributed.ep_size=4"),
    "2 copies with experts over 2": (4, "distributed.replicate_size=2", "distributed.ep_size=2"),
}
NOT_COMPARED = {"rank_imbalance", "train_runtime"}
TOKENS = 4 * 2 * 32  # of a step: micro-batches, samples, tokens
FFN, REST = [0.0] * 4, [0.0] * 4  # the tiny model's experts: 4 FFN, then 2 constant, 1 copy and 1 zero
NO_FFN, ONLY_FIRST = [float("-inf")] * 4 + REST, [100.0, *[float("-inf")] * 3, *REST]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_texts(tmp_path_factory.mktemp("parity") / "texts")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the run on one process."""
    return tmp_path_factory.mktemp("alone") / "run"


@pytest.fixture(scope="module")
def alone(texts: str, folder: Path) -> dict[str, Any]:
    return train_on(1, texts, folder)


def assert_same(run: dict[str, Any], alone: dict[str, Any]) -> None:
    assert len(run["logs"]) == len(alone["logs"]) == 3
    for mine, expected in zip(run["logs"], alone["logs"], strict=True):
        for name in expected.keys() - NOT_COMPARED:
            assert mine[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-5), (mine["step"], name)
    for name in ("eval_loss", "eval_bits_per_byte", "eval_code_loss"):
        assert run["validation"][name] == pytest.approx(alone["validation"][name], rel=1e-5), name
    for what in ("gradients", "weights"):
        assert run[what].keys() == alone[what].keys()
        for name, expected in alone[what].items():
            assert_close(run[what][name], expected, within=1e-5, name=f"{what} of {name}")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_run_does_not_depend_on_the_layout(layout: str, texts: str, alone: dict[str, Any], tmp_path: Path) -> None:
    """One process accumulates the same micro-batches, each with a capacity of its own; gradients are after clipping."""
    world, *overrides = LAYOUTS[layout]
    run = train_on(world, texts, tmp_path / "run", *overrides)
    assert_same(run, alone)
    assert max(log["dropped/ffn"] for log in alone["logs"]) > 0
    assert all(log["grad_norm"] > 0.5 for log in alone["logs"]), "nothing was clipped"
    assert all(log["rank_imbalance"] >= 1 for log in run["logs"])
    assert [log["tokens_per_second"] for log in run["logs"]] == [TOKENS / SECONDS] * 3, "not the tokens of all"


def test_capacity_is_a_micro_batchs_of_one_process(texts: str, alone: dict[str, Any], tmp_path: Path) -> None:
    """The same samples as one micro-batch: the same choices, and other assignments dropped."""
    overrides = ("training.gradient_accumulation_steps=1", "training.per_device_train_batch_size=8")
    at_once = train_on(1, texts, tmp_path / "run", *overrides)["logs"][0]
    assert at_once["share/ffn"] == pytest.approx(alone["logs"][0]["share/ffn"], rel=1e-6)
    assert at_once["dropped/ffn"] != pytest.approx(alone["logs"][0]["dropped/ffn"], rel=1e-3)
    run = train_on(4, texts, tmp_path / "four", "distributed.ep_size=4")["logs"][0]
    assert run["dropped/ffn"] == alone["logs"][0]["dropped/ffn"]


@pytest.mark.parametrize(
    ("case", "biases"),
    [
        ("no token of one process chooses an FFN expert", [[0.0] * 8, NO_FFN]),
        ("one process's experts get no token", [ONLY_FIRST]),
        ("no token of any process chooses one", [NO_FFN]),
    ],
)
def test_ranks_without_ffn_work_take_part(case: str, biases: list[list[float]], texts: str, tmp_path: Path) -> None:
    expected = train_on(1, texts, tmp_path / "alone", biases=biases)
    for name in ("experts over 4", "sharded over 2"):
        world, *overrides = LAYOUTS[name]
        assert_same(train_on(world, texts, tmp_path / name.replace(" ", "-"), *overrides, biases=biases), expected)


def test_tied_embeddings_learn_from_both_ends(texts: str, tmp_path: Path) -> None:
    one = train_on(1, texts, tmp_path / "one", "model.tie_word_embeddings=true")
    assert_same(train_on(2, texts, tmp_path / "two", "model.tie_word_embeddings=true"), one)


def test_shared_experts_are_every_processs_own(texts: str, alone: dict[str, Any], tmp_path: Path) -> None:
    shared = "model.num_shared_experts=2"
    one = train_on(1, texts, tmp_path / "one", shared)
    assert one["logs"][0]["share/ffn"] != alone["logs"][0]["share/ffn"], "the shared experts did nothing"
    assert_same(train_on(2, texts, tmp_path / "two", shared, "distributed.ep_size=2"), one)


def test_saved_weights_are_the_same_start_for_every_layout(
    texts: str, alone: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    start = f"initial_weights={folder}"
    one = train_on(1, texts, tmp_path / "one", start)
    assert one["logs"][0]["lm_loss"] < alone["logs"][0]["lm_loss"] - 0.01
    assert_same(train_on(2, texts, tmp_path / "two", start, "distributed.ep_size=2"), one)


def test_activation_checkpointing_changes_nothing(texts: str, alone: dict[str, Any], tmp_path: Path) -> None:
    overrides = ("distributed.ep_size=2", "training.gradient_checkpointing=true")
    assert_same(train_on(4, texts, tmp_path / "run", *overrides), alone)


def test_bf16_is_that_of_one_process(texts: str, alone: dict[str, Any], tmp_path: Path) -> None:
    """Autocast, on one process and on several: the same roundings, up to the order of sums."""
    one = train_on(1, texts, tmp_path / "one", "training.bf16=true")
    run = train_on(4, texts, tmp_path / "run", "distributed.ep_size=2", "training.bf16=true")
    for mine, expected, exact in zip(run["logs"], one["logs"], alone["logs"], strict=True):
        assert mine["lm_loss"] == pytest.approx(expected["lm_loss"], abs=2e-3)
        assert mine["lm_loss"] != exact["lm_loss"]
