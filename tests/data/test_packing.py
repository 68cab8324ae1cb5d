import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moepp.data import DataSpec, SourceSpec, TrainingData, ValidationData, build_data
from moepp.data.mixture import draw_sources, iterate_sources
from moepp.data.packing import encode, encode_all, to_blocks
from moepp.errors import DataError


def numbered_blocks(*counts, length=4):
    """Blocks that say which source and which block they are."""
    return [
        np.stack([np.full(length, 1000 * source + number, np.uint16) for number in range(count)])
        for source, count in enumerate(counts)
    ]


def labels_of(data):
    return [int(data[index]["input_ids"][0]) for index in range(len(data))]


@settings(max_examples=50, deadline=None)
@given(documents=st.lists(st.text(max_size=40), max_size=150), length=st.integers(2, 9))
def test_packing_conserves_tokens(tokenizer, documents, length):
    tokens, size = encode_all(documents, tokenizer)
    assert size == sum(len(document.encode()) for document in documents)
    assert np.count_nonzero(tokens == tokenizer.eos_token_id) == len(documents)
    pieces = np.split(tokens, np.flatnonzero(tokens == tokenizer.eos_token_id) + 1)[:-1]
    assert [tokenizer.decode(piece[:-1]) for piece in pieces] == documents
    if len(tokens) >= length:
        blocks = to_blocks(tokens, length, "x")
        assert blocks.reshape(-1).tolist() == tokens[: len(tokens) // length * length].tolist()


def test_a_special_token_in_a_text_ends_no_document(tokenizer):
    tokens = encode(["a<|endoftext|>b", ""], tokenizer)
    assert np.count_nonzero(tokens == tokenizer.eos_token_id) == 2
    assert tokens.dtype == np.uint16


def test_too_little_text():
    with pytest.raises(DataError, match=r"^data source 'x' has 3 tokens and one block needs 4; add text, lower data"):
        to_blocks(np.arange(3), 4, "data source 'x'")


def test_samples_are_what_a_model_takes():
    sample = TrainingData(numbered_blocks(1), [1.0], seed=0, num_samples=1)[0]
    assert sample["input_ids"].dtype == sample["labels"].dtype == torch.int64
    assert sample["input_ids"].tolist() == sample["labels"].tolist()
    assert sample["input_ids"].data_ptr() != sample["labels"].data_ptr()


@settings(max_examples=30, deadline=None)
@given(
    counts=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    seed=st.integers(0, 2**32 - 1),
    samples=st.integers(1, 120),
    data=st.data(),
)
def test_any_sample_by_itself_and_every_block_once_an_epoch(counts, seed, samples, data):
    weights = [1 / len(counts)] * len(counts)
    make = lambda count: TrainingData(numbered_blocks(*counts), weights, seed=seed, num_samples=count)  # noqa: E731
    whole = labels_of(make(samples))
    start = data.draw(st.integers(0, samples - 1))
    resumed = make(samples)
    assert [int(resumed[index]["input_ids"][0]) for index in range(start, samples)] == whole[start:]
    assert labels_of(make(start)) == whole[:start], "a shorter run begins like a longer one"
    for source, count in enumerate(counts):
        seen = [label for label in whole if label // 1000 == source]
        for epoch in range(0, len(seen) - count + 1, count):
            assert sorted(seen[epoch : epoch + count]) == [1000 * source + number for number in range(count)]


def test_seeds_and_epochs_differ():
    order = {seed: labels_of(TrainingData(numbered_blocks(50), [1.0], seed=seed, num_samples=100)) for seed in (1, 2)}
    assert order[1] != order[2]
    assert order[1][:50] != order[1][50:]


def test_end_of_the_data_set():
    data = TrainingData(numbered_blocks(3), [1.0], seed=0, num_samples=5)
    for index in (5, -1):
        with pytest.raises(IndexError, match=f"sample {index} of 5"):
            data[index]


def test_mixture_frequencies():
    weights = [0.7, 0.25, 0.05]
    drawn = draw_sources(weights, 3, 100_000)  # two chunks
    for source, weight in enumerate(weights):
        deviation = math.sqrt(weight * (1 - weight) / len(drawn))
        assert abs(np.mean(drawn == source) - weight) < 5 * deviation
    for start in (0, 65_530, 65_536, 70_000):
        again = [source for source, _ in zip(iterate_sources(weights, 3, start), range(50), strict=False)]
        assert again == drawn[start : start + 50].tolist()


def test_validation_is_evenly_spaced():
    (blocks,) = numbered_blocks(100)
    data = ValidationData(blocks, 3.5, max_tokens=41)
    assert labels_of(data) == [0, 10, 20, 30, 40, 50, 60, 70, 80, 90]
    assert [int(sample["input_ids"][0]) for sample in data] == labels_of(data)
    assert len(ValidationData(blocks, 3.5)) == 100


@pytest.fixture
def two_sources(tmp_path):
    for name, word in [("a", "fox "), ("b", "dog ")]:
        for number in range(20):
            (tmp_path / f"{name}{number}.txt").write_text(word * (30 + number))
    return [SourceSpec(name, weight=weight, files=[f"{tmp_path}/{name}*"]) for name, weight in [("a", 3), ("b", 1)]]


def test_build_data(two_sources, tokenizer):
    spec = DataSpec(sequence_length=16, sources=two_sources, validation_fraction=0.2)
    calls = []
    data = build_data(spec, tokenizer, seed=5, num_samples=400, progress=lambda *call: calls.append(call))
    assert isinstance(data.train, TrainingData)
    assert len(data.train) == 400
    texts = [tokenizer.decode(data.train[index]["input_ids"]) for index in range(400)]
    kinds = Counter("fox" in text for text in texts)
    assert abs(kinds[True] - 300) < 5 * math.sqrt(400 * 0.75 * 0.25)
    assert {what for what, _, _ in calls} == {"a train", "a validation", "b train", "b validation"}
    assert all(done <= total for _, done, total in calls)

    rows = {(row["source"], row["split"]): row for row in data.rows}
    for name, held_out in data.validation.items():
        row = rows[name, "validation"]
        assert held_out.bytes_per_token == row["bytes"] / row["tokens"]
    train = rows["a", "train"]
    assert train["epochs"] == pytest.approx(400 * 0.75 / (train["tokens"] // 16))


def test_the_hash_covers_what_decides_the_samples(two_sources, tokenizer):
    spec = DataSpec(sequence_length=16, sources=two_sources)
    build = lambda spec=spec, seed=5: build_data(spec, tokenizer, seed=seed, num_samples=4)  # noqa: E731
    first, again, other = build(), build(), build(seed=6)
    assert first.hash == again.hash != other.hash
    assert first.corpus_hash == other.corpus_hash
    assert build(DataSpec(sequence_length=32, sources=two_sources)).hash != first.hash


def test_too_little_text_names_the_source(two_sources, tokenizer):
    spec = DataSpec(sequence_length=100_000, sources=two_sources)
    with pytest.raises(DataError, match=r"^data source 'a': its validation part has \d+ tokens and one block needs"):
        build_data(spec, tokenizer, seed=0, num_samples=1)
    spec.validation_fraction = 0.0
    with pytest.raises(DataError, match=r"^data source 'a': its training part has \d+ tokens and one block needs"):
        build_data(spec, tokenizer, seed=0, num_samples=1)
    spec.sequence_length = 16
    assert build_data(spec, tokenizer, seed=0, num_samples=1).validation == {}
