import gc
from collections.abc import Iterator

import pytest

from experiments import routed
from experiments.lab import Lab

from .toy import toy_lab


@pytest.fixture(scope="package")
def lab(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[Lab]:
    """One pool for all tests of all workers, which train in it what they need."""
    here = tmp_path_factory.getbasetemp()
    gc.freeze()  # every training ends with a collection, which looks through all that is imported: half of its time
    yield toy_lab((here if worker_id == "master" else here.parent) / "experiments")
    gc.unfreeze()


@pytest.fixture(autouse=True)
def little_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routed, "TOKENS", 2048)
