"""How much is trained: one recipe a scale, which all experiments vary."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from moepp.errors import ConfigError, nearest

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Scale:
    """One size of everything."""

    name: str
    recipe: Path
    """What the MoE++ model of all experiments is trained by."""
    results: Path
    """Where JSON and plots go."""
    seeds: tuple[int, ...] = field(default=(0, 1, 2), compare=False)  # a run is the same whatever others there are
    more_seeds: tuple[int, ...] = (3, 4, 5)
    """Besides, for what three leave open and too much depends on."""
    device: str = "cpu"
    """What trained models are measured on, unless the user says otherwise."""
    long_context: int = 8192
    """Tokens of the sequences that the experiment on long context trains on."""
    layer: str = "7b"
    """Size of the layer that is timed for Tables A and B: the paper's, whatever is trained."""

    def with_more_seeds(self) -> "Scale":
        return replace(self, seeds=self.seeds + self.more_seeds)


SCALES = {
    name: Scale(name, HERE / "recipes" / f"{name}.yaml", HERE / "results" / name, device=device)
    for name, device in {"tiny": "cpu", "small": "cpu", "gpu": "cuda"}.items()
}


def check_device(device: str) -> None:
    """Raises ConfigError where this machine lacks it: nothing falls back to the CPU silently."""
    if device not in ("cpu", "cuda"):
        raise ConfigError(f"--device={device!r} does not exist; {nearest(device, ('cpu', 'cuda'))}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "--device='cuda' needs a CUDA GPU, and torch sees none here; --scale tiny and small need none"
        )


def scale(name: str) -> Scale:
    """The scale of this name.

    Raises:
        ConfigError: there is none.
    """
    if name not in SCALES:
        raise ConfigError(f"--scale={name!r} does not exist; {nearest(name, SCALES)}")
    return SCALES[name]
