"""The states of all random number generators of a process."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch


def states() -> dict[str, Any]:
    """Python's, NumPy's and torch's states, the GPU's among them, as tensors and numbers alone."""
    state: Any = np.random.get_state(legacy=False)
    state["state"]["key"] = state["state"]["key"].tolist()
    return {
        "python": random.getstate(),
        "numpy": state,
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,  # of this process's GPU
    }


def resume(saved: Sequence[Mapping[str, Any]], rank: int, size: int, *, seed: int, step: int) -> None:
    """Goes on with what each process of a job had in a checkpoint; another number of them starts anew.

    Args:
        saved: the :func:`states` of every process, by rank.
        rank, size: this process, and how many there are now.
        seed, step: the run's, and the checkpoint's: they and the rank decide what a new start draws.
    """
    if len(saved) != size:
        from transformers import set_seed

        set_seed(int(np.random.SeedSequence((seed, step, rank)).generate_state(1)[0]))
        return
    own = saved[rank]
    random.setstate(own["python"])
    np.random.set_state(own["numpy"])
    torch.set_rng_state(own["torch"])
    if own["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(own["cuda"])
