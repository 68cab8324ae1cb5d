"""A checkpoint of any number of processes is one of any other: the same weights, moments and next losses.

The same four micro-batches make a step on 1, 2 and 4 processes, so their losses may be compared.
"""

import json
import os
import random
import resource
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from moepp.errors import DataError
from moepp.model import MoEPPConfig
from moepp.train import checkpoint, dcp, rng
from moepp.train.distributed import build_model, total
from moepp.train.export import save_configuration
from moepp.train.group import Group
from moepp.train.initialise import initialise
from moepp.train.layout import Layout
from moepp.train.saver import RNG_FILE, Saver, Snapshot

from .processes import run_processes

CONFIG: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16,
    "num_ffn_experts": 4,
}
MICRO_BATCHES = 4
STEPS = 2


class Sizes(NamedTuple):
    """Of a layout; the number of processes follows."""

    replicate: int = 1
    fsdp: int = 1
    ep: int = 1

    @property
    def world(self) -> int:
        return self.replicate * self.fsdp


class Moment(NamedTuple):
    """What must survive a save and a load: everything whole, and the losses of the next steps."""

    tensors: dict[str, np.ndarray]
    losses: list[float]


class Run:
    """A model in training, spread over this process's job."""

    def __init__(self, sizes: Sizes, seed: int) -> None:
        rank = dist.get_rank() if dist.is_initialized() else 0
        self.layout = Layout(sizes.replicate, sizes.fsdp, sizes.ep, rank)
        self.model = build_model(MoEPPConfig(**CONFIG), self.layout, device="cpu")
        initialise(self.model, seed)
        decay = [p for p in self.model.parameters() if p.dim() > 1]
        rest = [p for p in self.model.parameters() if p.dim() <= 1]
        groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-2)

    def train(self, first: int, count: int) -> list[float]:
        """Steps ``first`` to ``first + count - 1``; their losses over all processes."""
        losses = []
        for step in range(first, first + count):
            mine = range(self.layout.rank, MICRO_BATCHES, self.layout.world_size)
            loss = torch.zeros(())
            for number in mine:
                generator = torch.Generator().manual_seed(step * MICRO_BATCHES + number)
                tokens = torch.randint(CONFIG["vocab_size"], (2, 16), generator=generator)
                part = self.model(input_ids=tokens, labels=tokens).loss / len(mine)
                part.backward()
                loss += part.detach() / self.layout.world_size
            self.optimizer.step()
            self.optimizer.zero_grad()
            losses.append(total([loss])[0].item())
        return losses

    def snapshot(self, step: int) -> Snapshot:
        state = dcp.state_of(self.model, self.optimizer)
        position = {"rank": self.layout.rank}
        return Snapshot(step, state, rng.states(), position, lambda folder: save_configuration(self.model, folder))

    def whole(self) -> dict[str, np.ndarray]:
        """Every tensor of model and optimizer, gathered."""
        state = dcp.state_of(self.model, self.optimizer)
        flat = {f"{part}.{name}": value for part, values in state.items() for name, value in values.items()}
        return {k: (v.full_tensor() if isinstance(v, DTensor) else v).clone().numpy() for k, v in flat.items()}


def saver(run: Path, keep: int | None = None) -> Saver:
    return Saver(run, {"seed": 0}, keep, lambda positions: {"ranks": [p["rank"] for p in positions]})


def _train_and_save(sizes: Sizes, run: Path) -> Moment:
    """Writes a checkpoint while training goes on: its thread may begin when the next steps are done."""
    job = Run(sizes, seed=0)
    job.train(0, STEPS)
    whole, trained, write = job.whole(), threading.Event(), dcp.write

    def late(*args: Any) -> None:
        assert trained.wait(timeout=30)
        write(*args)

    dcp.write = late
    saves = saver(run)
    saves.save(lambda: job.snapshot(STEPS))
    losses = job.train(STEPS, STEPS)
    assert not any(np.array_equal(value, whole[name]) for name, value in job.whole().items() if "norm" in name)
    assert not checkpoint.checkpoints(run)
    trained.set()
    saves.wait()
    dcp.write = write
    return Moment(whole, losses)


def _load_and_train(sizes: Sizes, folder: Path) -> Moment:
    checkpoint.verify(folder, Group.new())
    job = Run(sizes, seed=1)
    dcp.load_model(job.model, folder)
    dcp.load_optimizer(job.model, job.optimizer, folder)
    return Moment(job.whole(), job.train(STEPS, STEPS))


def on(sizes: Sizes, function: Callable[..., Moment], run: Path) -> Moment:
    """Runs the function in so many processes; what rank 0 saw, after a look at the others."""
    first, *others = run_processes(sizes.world, function, sizes, run)
    for other in others:
        assert other.losses == first.losses
        assert all(np.array_equal(value, first.tensors[name]) for name, value in other.tensors.items())
    return first


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Sizes], tuple[Path, Moment]]:
    """Runs that were saved by a number of processes, each trained once."""
    done: dict[Sizes, tuple[Path, Moment]] = {}

    def save(sizes: Sizes) -> tuple[Path, Moment]:
        if sizes not in done:
            run = tmp_path_factory.mktemp("run")
            done[sizes] = run / f"checkpoint-{STEPS}", on(sizes, _train_and_save, run)
        return done[sizes]

    return save


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (Sizes(fsdp=2), Sizes()),
        (Sizes(), Sizes(fsdp=2)),
        (Sizes(fsdp=4, ep=2), Sizes(fsdp=2)),
        (Sizes(fsdp=2), Sizes(fsdp=4, ep=4)),
        (Sizes(fsdp=4, ep=2), Sizes(replicate=2, fsdp=2, ep=2)),
    ],
    ids=str,
)
def test_another_number_of_processes_goes_on(
    saved: Callable[[Sizes], tuple[Path, Moment]], before: Sizes, after: Sizes
) -> None:
    folder, expected = saved(before)
    loaded = on(after, _load_and_train, folder)
    assert loaded.tensors.keys() == expected.tensors.keys()
    assert all(np.array_equal(value, expected.tensors[name]) for name, value in loaded.tensors.items())
    assert loaded.losses == pytest.approx(expected.losses, abs=1e-5)
    assert loaded.losses[0] != loaded.losses[1]


class Said(NamedTuple):
    """How a rank ended."""

    step: int
    message: str
    said_by: int | None


def _fill_the_disk_of_rank_1(run: Path, size: int) -> Said:
    """Saves once with room, once without; trains on until it is told."""
    job = Run(Sizes(fsdp=2), seed=0)
    saves = saver(run)
    job.train(0, 1)
    saves.save(lambda: job.snapshot(1))
    job.train(1, 1)
    saves.wait()
    if job.layout.rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    saves.save(lambda: job.snapshot(2))
    for step in range(2, 200):
        job.train(step, 1)
        try:
            saves.check()
        except DataError as error:
            return Said(step, str(error), error.said_by)
    return Said(0, "", None)


@pytest.mark.parametrize("size", [1000, 10_000])
def test_a_full_disk_of_one_process_ends_all_in_the_same_step_and_leaves_the_earlier_checkpoint(
    tmp_path: Path, size: int
) -> None:
    said = run_processes(2, _fill_the_disk_of_rank_1, tmp_path, size)
    assert said[0] == said[1]
    assert said[0].message == (
        f"checkpoint-2 could not be written to {tmp_path}: rank 1: [Errno 27] File too large; make room, or check "
        f"output_dir; --resume goes on from {tmp_path}/checkpoint-1"
    )
    assert said[0].said_by == 0
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
    checkpoint.verify(tmp_path / "checkpoint-1")


def _save_twice(run: Path) -> None:
    job = Run(Sizes(fsdp=2), seed=0)
    saves = saver(run, keep=2)
    for step in range(3):
        job.train(step, 1)
        saves.save(lambda step=step: job.snapshot(step + 1))
    saves.wait()


def _verify(folder: Path) -> Said:
    try:
        checkpoint.verify(folder, Group.new())
    except DataError as error:
        return Said(0, str(error), error.said_by)
    return Said(0, "", None)


def test_a_lost_or_cut_shard_is_named_by_all_processes_and_the_checkpoint_before_offered(tmp_path: Path) -> None:
    run_processes(2, _save_twice, tmp_path)
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-3"]
    newest, shard = tmp_path / "checkpoint-3", tmp_path / "checkpoint-3" / "__1_0.distcp"
    assert run_processes(2, _verify, newest) == [Said(0, "", None)] * 2
    size = shard.stat().st_size
    offer = f"resume from the one before it: --resume-from {tmp_path}/checkpoint-2"
    for damage, reason in (
        (lambda: os.truncate(shard, 1000), f"__1_0.distcp has 1000 bytes instead of {size}"),
        (shard.unlink, "__1_0.distcp is missing"),
    ):
        damage()
        message = f"checkpoint {newest} is damaged: {reason}; {offer}"
        assert run_processes(2, _verify, newest) == [Said(0, message, 0)] * 2


def _draw(folder: Path) -> tuple[float, float, float]:
    """What a process would draw next from each generator after a resume."""
    saved = torch.load(folder / RNG_FILE, weights_only=True)
    group = Group.new()
    rng.resume(saved, group.rank, group.size, seed=0, step=STEPS)
    return random.random(), float(np.random.rand()), torch.rand(()).item()


def _draw_after_a_save(run: Path) -> tuple[float, float, float]:
    job = Run(Sizes(fsdp=2), seed=0)
    job.train(0, STEPS)
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(job.layout.rank)
    saves = saver(run)
    saves.save(lambda: job.snapshot(STEPS))
    saves.wait()
    return random.random(), float(np.random.rand()), torch.rand(()).item()


def test_each_process_goes_on_with_its_own_random_numbers_or_with_new_ones_for_another_number(tmp_path: Path) -> None:
    expected = run_processes(2, _draw_after_a_save, tmp_path)
    folder = tmp_path / f"checkpoint-{STEPS}"
    assert run_processes(2, _draw, folder) == expected
    anew = run_processes(4, _draw, folder)
    assert len({*anew, *expected}) == 6
    assert run_processes(4, _draw, folder) == anew
    assert json.loads((folder / checkpoint.STREAM_FILE).read_text()) == {"ranks": [0, 1]}
