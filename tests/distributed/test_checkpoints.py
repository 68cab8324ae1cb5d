"""A checkpoint of any number of processes is one of any other: the same weights, moments and next losses.

The same four micro-batches make a step on 1, 2 and 4 processes, so their losses may be compared.
"""

import resource
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from moepp.errors import DataError
from moepp.model import MoEPPConfig, MoEPPForCausalLM, load_model
from moepp.train import checkpoint, dcp, rng
from moepp.train.distributed import build_model, total
from moepp.train.export import export, save_configuration
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
