"""Collecting on a CUDA GPU, against the same model on the CPU (make gpu)."""

import copy

import numpy as np
import pytest

from moepp.analyze import Text, collect
from moepp.data import train_tokenizer

from ..model.factory import tiny_model

pytestmark = pytest.mark.gpu
WORDS = "the cat and the dog and the cow or a bee in the tree "


@pytest.mark.parametrize("capacity", [None, 0.7])
def test_a_table_is_the_cpus(capacity: float | None) -> None:
    tokenizer = train_tokenizer([WORDS] * 4, 280)
    cpu = tiny_model(vocab_size=len(tokenizer), eval_capacity_factor=capacity)
    texts = [Text("long", "a", WORDS * 9), Text("short", "b", "a bee"), Text("one", "b", "x")]
    expected, found = (
        collect(model, tokenizer, texts, window=16, batch_size=4) for model in (cpu, copy.deepcopy(cpu).cuda())
    )
    for name in ("expert", "kept", "token", "position", "document"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    for name in ("score", "weight", "entropy", "loss"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5, err_msg=name)
