import pytest

from experiments.lab import Lab

from .toy import toy_lab


@pytest.fixture(scope="package")
def lab(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Lab:
    """One pool for all tests of all workers, which train in it what they need."""
    here = tmp_path_factory.getbasetemp()
    return toy_lab((here if worker_id == "master" else here.parent) / "experiments")
