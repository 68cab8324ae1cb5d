from pathlib import Path

import pytest

from .tiny import Runner, write_texts


@pytest.fixture(scope="package")
def texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_texts(tmp_path_factory.mktemp("texts") / "texts")


@pytest.fixture(scope="package")
def shared(tmp_path_factory: pytest.TempPathFactory, texts: str) -> Runner:
    """Runs that several tests read and none changes."""
    return Runner(tmp_path_factory.mktemp("shared"), texts)


@pytest.fixture
def runner(tmp_path: Path, texts: str) -> Runner:
    return Runner(tmp_path, texts)


@pytest.fixture(scope="package")
def plain(shared: Runner) -> Path:
    """The uninterrupted twelve steps of the recipe as it is, validated at steps 6 and 12."""
    shared.train("plain")
    return shared.out("plain")
