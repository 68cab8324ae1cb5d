"""An engine that is too old is named before anything is built on it."""

import pytest
import transformers

from moepp.errors import BackendUnavailable
from moepp.train.distributed import build_model
from moepp.train.layout import Layout

from ..model.factory import tiny_config


def test_transformers_that_is_too_old_for_several_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers, "__version__", "5.17.0")
    build_model(tiny_config(), Layout(), device="cpu")
    with pytest.raises(BackendUnavailable, match=r"^several processes need transformers 5\.23 or newer, and 5"):
        build_model(tiny_config(), Layout(fsdp_size=2), device="cpu")
