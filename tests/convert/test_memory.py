"""A checkpoint larger than the memory for it is converted: one shard is in memory at a time."""

import json
import os
from pathlib import Path

import pytest
import torch

from moepp.convert import convert
from moepp.convert import released as converter

from ..released_factory import published_config, published_shapes, write_published

MB = 10**6
ALLOWED = 50 * MB
"""Above one shard: less than a second one, and a twentieth of what a user is promised."""


def status(field: str) -> int:
    """Bytes of this process, from Linux's own accounting; memory that is a mapped file counts."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def peak_of_converting(folder: Path, destination: Path) -> int:
    """Bytes above what a process with everything imported has anyway, in a process of its own."""
    note = destination.with_suffix(".json")
    pid = os.fork()
    if pid == 0:
        try:
            Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
            before = status("VmRSS")
            convert(folder, destination)
            note.write_text(json.dumps(status("VmHWM") - before))
        finally:
            os._exit(not note.exists())  # whatever happened: this is no second run of the tests
    assert os.waitpid(pid, 0)[1] == 0
    return json.loads(note.read_text())


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_one_shard_is_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = 7
    config = published_config(
        hidden_size=512, intermediate_size=2048, num_hidden_layers=layers, num_experts=[9], moe_2layer_gate=True
    )
    tensors = {name: torch.full(shape, 0.5) for name, shape in published_shapes(config).items()}
    total = sum(tensor.nbytes for tensor in tensors.values())
    folder = write_published(tmp_path / "published", config, tensors, shards=layers)
    del tensors
    shard = max(file.stat().st_size for file in folder.glob("*.bin"))
    assert 60 * MB < shard < 100 * MB
    assert total > 2 * (shard + ALLOWED)
    monkeypatch.setattr(converter, "SHARD_BYTES", shard)
    there = peak_of_converting(folder, tmp_path / "ours")
    back = peak_of_converting(tmp_path / "ours", tmp_path / "back")
    assert there < shard + ALLOWED
    assert back < shard + ALLOWED
