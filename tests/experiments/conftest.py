import pytest

from experiments.lab import Lab

from .toy import toy_lab


@pytest.fixture(scope="package")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """One pool for all tests, which train in it what they need."""
    return toy_lab(tmp_path_factory.mktemp("experiments"))
