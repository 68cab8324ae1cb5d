"""Checks the shapes and dtypes that public signatures promise, in every test.

beartype is a development dependency: where it is missing (`make gpu` on a machine that installs nothing), the tests
run without these checks, and the header of the test run says so.
"""

import importlib.util
import os
from collections.abc import Iterator

import jaxtyping
import pytest
import torch
from jaxtyping import install_import_hook

CHECKED = importlib.util.find_spec("beartype") is not None
if CHECKED:
    # Not moepp.config: it checks itself, in words of its own that tests/test_config.py pins.
    install_import_hook(["moepp.layers", "moepp.ops"], "beartype.beartype")


# Tests run on tiny tensors and beside each other (pytest -n 2): more threads than one only wait for each other.
torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    """Triton kernels run in its interpreter, on CPU tensors, unless the GPU's tests are asked for (`make gpu`).

    One process can do one of the two: Triton decides when a kernel is defined, that is when it is first imported.
    """
    if config.option.markexpr != "gpu":
        os.environ["TRITON_INTERPRET"] = "1"


def pytest_report_header() -> str:
    return f"moepp: shapes and dtypes of public signatures are {'checked' if CHECKED else 'NOT checked: no beartype'}"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Leaves shapes and dtypes unchecked: torch.compile cannot trace beartype."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
