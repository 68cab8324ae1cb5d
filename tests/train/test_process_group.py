"""What is checked of a job from its recipe and its launcher's environment alone."""

from typing import Any

import pytest
import torch.distributed as dist

from moepp.errors import BackendUnavailable, ConfigError
from moepp.train.process_group import Launch, backend_of, check_devices, process_group

TORCHRUN = {"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}


def of(world_size: int) -> Launch:
    return Launch(rank=0, world_size=world_size, local_rank=0, local_world_size=world_size, restarts=0)


def test_a_launch_is_read_from_torchruns_environment() -> None:
    assert Launch.of(TORCHRUN | {"TORCHELASTIC_RESTART_COUNT": "3"}) == Launch(2, 4, 0, 2, 3)
    assert Launch.of({}) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"RANK": "4"}, r"^RANK=4 is not below WORLD_SIZE=4; start with torchrun, which sets both$"),
        ({"RANK": "two"}, r"^RANK=two in the environment is not a number; start with torchrun, which sets it$"),
        ({"LOCAL_RANK": ""}, r"^LOCAL_RANK= in the environment is not a number; start with torchrun, which sets it$"),
    ],
)
def test_an_environment_that_makes_no_sense_is_refused(changes: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Launch.of(TORCHRUN | changes)


def test_each_process_needs_a_gpu_of_its_own() -> None:
    check_devices(None, 1)
    check_devices(None, 0)
    check_devices(of(4), 4)
    check_devices(of(4), 0)
    with pytest.raises(ConfigError, match=r"^4 GPUs are visible to one process.*--nproc-per-node 4.*VISIBLE_DEVICES=0"):
        check_devices(None, 4)
    with pytest.raises(ConfigError, match=r"^4 processes share the 2 GPUs of this machine.*--nproc-per-node 2"):
        check_devices(of(4), 2)


def test_ranks_speak_gloo_beside_what_their_device_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert backend_of("cpu") == "gloo"
    monkeypatch.setattr(dist, "is_nccl_available", lambda: True)
    assert backend_of("cuda") == "cpu:gloo,cuda:nccl"


@pytest.mark.parametrize(("device", "backend"), [("cpu", "gloo"), ("cuda", "gloo"), ("cuda", "nccl")])
def test_a_backend_that_pytorch_lacks_is_named(device: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("gloo", "nccl"):
        monkeypatch.setattr(dist, f"is_{name}_available", lambda name=name: name != backend)
    with pytest.raises(
        BackendUnavailable, match=rf"built without {backend}, which several processes on {device} need;"
    ):
        backend_of(device)


def test_a_pytorch_without_distributed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "is_available", lambda: False)
    group: Any = process_group(of(2), 1.0, "cpu")
    with pytest.raises(BackendUnavailable, match=r"built without torch\.distributed, which several processes need;"):
        group.__enter__()
    with process_group(None, 1.0, "cpu"):
        assert not dist.is_initialized()
