"""A job that starts again, without torchrun: its store, its attempts and its recipe."""

import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from moepp import cli
from moepp.train import checkpoint

from ..train.tiny import recipe_of, write_recipe
from .processes import run_processes


def _attempt(
    port: int, number: int, recipe: str, arguments: list[str], happens: Callable[[], Any] | None
) -> int | str | None:
    """One attempt of a job under torchrun, whose agent keeps the store; this process's exit code."""
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": str(number),
    }
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{recipe}-{name}-{os.environ['RANK']}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    sys.argv = ["moepp", "train", recipe, *arguments]
    with happens() if happens is not None and os.environ["RANK"] == "1" else nullcontext():
        try:
            cli.main()
        except SystemExit as end:
            return end.code
    return 0


class Agent:
    """Stands for torchrun, which takes ten seconds to start: keeps the job's store, and counts its attempts."""

    def __init__(self, recipe: Path) -> None:
        self.store: Any = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, multi_tenant=True)  # pyright: ignore[reportPrivateImportUsage]
        self.store.set_timeout(timedelta(seconds=30))
        self.recipe = recipe
        self.attempts = 0

    def start(self, *arguments: str, world: int = 2, happens: Callable[[], Any] | None = None) -> list[Any]:
        number, self.attempts = self.attempts, self.attempts + 1
        self.recipe.with_name(f"{self.recipe.name}-err-0").unlink(missing_ok=True)
        return run_processes(
            world, _attempt, self.store.port, number, str(self.recipe), list(arguments), happens, init=False, timeout=90
        )

    @property
    def said(self) -> str:
        """Errors of rank 0 in the last attempt."""
        text = self.recipe.with_name(f"{self.recipe.name}-err-0").read_text()
        return "\n".join(line for line in text.splitlines() if line.startswith("error"))


def make_recipe(folder: Path, texts: str, **training: Any) -> Path:
    recipe = recipe_of(texts, folder / "run")
    recipe["model"] |= {"num_ffn_experts": 4}
    recipe["training"] |= {"gradient_accumulation_steps": 2, **training}
    recipe["distributed"] = {"ep_size": 2, "timeout_seconds": 10.0}
    return write_recipe(folder / "recipe.yaml", recipe)


def newest(run: Path) -> int:
    return max((checkpoint.step_of(path) for path in checkpoint.checkpoints(run)), default=0)
