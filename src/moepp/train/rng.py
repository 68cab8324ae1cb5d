"""The states of all random number generators of a process."""

import random
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
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def restore(saved: dict[str, Any]) -> None:
    """Goes on where :func:`states` was called."""
    random.setstate(saved["python"])
    np.random.set_state(saved["numpy"])
    torch.set_rng_state(saved["torch"])
    for device, state in enumerate(saved["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(state, device)


def derive(seed: int, step: int, rank: int) -> None:
    """Starts all of them anew for a process that no saved state belongs to."""
    from transformers import set_seed

    set_seed(int(np.random.SeedSequence((seed, step, rank)).generate_state(1)[0]))
