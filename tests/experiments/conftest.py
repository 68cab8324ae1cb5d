import pytest

from experiments import routed
from experiments.lab import Lab

from .toy import toy_lab


@pytest.fixture(scope="package")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """One pool for all tests, which train in it what they need."""
    return toy_lab(tmp_path_factory.mktemp("experiments"))


@pytest.fixture(autouse=True)
def little_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routed, "TOKENS", 2048)
