import contextlib
import itertools
import json
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moepp.data import StreamingData, TrainingData, merge_states, streaming, train_loader
from moepp.data.hub import Stream
from moepp.errors import ConfigError

SAMPLES, BATCH = 96, 2
STEP = 8  # micro-batches, over all ranks


def in_memory(tokenizer):
    blocks = [np.arange(4 * count, dtype=np.uint16).reshape(count, 4) + 1000 * count for count in (5, 9)]
    return TrainingData(blocks, [0.5, 0.5], seed=3, num_samples=SAMPLES)


def stream(tokenizer, *shards, lanes=4):
    """Sources with these numbers of shards."""
    sources = [
        [[f"source {s} shard {shard} document {n} " * (n % 3 + 1) for n in range(9)] for shard in range(count)]
        for s, count in enumerate(shards)
    ]
    return StreamingData(
        *([Stream(len(texts), texts.__getitem__) for texts in sources], [*"abc"[: len(shards)]]),
        *([1 / len(shards)] * len(shards), tokenizer),
        sequence_length=8,
        seed=7,
        num_samples=SAMPLES,
        lanes=lanes,
    )


def few_shards(tokenizer):
    return stream(tokenizer, 1, 3)


def many_shards(tokenizer):
    return stream(tokenizer, 4, 13, 1)


def ids(batches):
    return [batch["input_ids"].tolist() for batch in batches]


def step_by_step(make, tokenizer, ranks, first=0, state=None, end=SAMPLES // BATCH):
    """The micro-batches of all ranks in the run's order, up to number ``end``, and the state of the data there."""
    parts = []
    for rank in range(ranks):
        data = make(tokenizer)
        if state is not None:
            data.load_state_dict(state)
        loader = train_loader(data, batch_size=BATCH, rank=rank, ranks=ranks, first=first)
        assert len(loader) == SAMPLES // BATCH // ranks, "the whole run's, wherever it starts"
        batches = ids(itertools.islice(loader, (end - first) // ranks))
        parts.append((batches, data.state_dict(end * BATCH) if isinstance(data, StreamingData) else None))
    batches = [batch for step in zip(*(batches for batches, _ in parts), strict=True) for batch in step]
    states = [json.loads(json.dumps(state)) for _, state in parts if state is not None]
    return batches, merge_states(states) if states else None


@pytest.mark.parametrize("make", [in_memory, few_shards, many_shards])
def test_a_run_goes_on_with_any_number_of_ranks(tokenizer, make):
    whole, _ = step_by_step(make, tokenizer, 1)
    assert len({str(batch) for batch in whole}) > 8
    for before, after in itertools.product([1, 2, 4], repeat=2):
        begun, state = step_by_step(make, tokenizer, before, end=2 * STEP)
        rest, _ = step_by_step(make, tokenizer, after, first=2 * STEP, state=state)
        assert begun + rest == whole


@settings(max_examples=15, deadline=None)
@given(
    shards=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    lanes=st.sampled_from([1, 2, 3, 4, 8]),
    stops=st.sets(st.integers(1, 5), max_size=3),
    data=st.data(),
)
def test_a_run_goes_on_wherever_it_stopped(tokenizer, shards, lanes, stops, data):
    def make(tokenizer):
        return stream(tokenizer, *shards, lanes=lanes)

    whole, _ = step_by_step(make, tokenizer, 1)
    seen, first, state = [], 0, None
    for end in [*(stop * STEP for stop in sorted(stops)), SAMPLES // BATCH]:
        ranks = data.draw(st.sampled_from([ranks for ranks in (1, 2, 4, 8) if lanes % ranks == 0]))
        batches, state = step_by_step(make, tokenizer, ranks, first, state, end)
        seen, first = seen + batches, end
    assert seen == whole


def test_the_state_is_where_training_is_not_where_reading_is(tokenizer):
    data = many_shards(tokenizer)
    loader = iter(train_loader(data, batch_size=BATCH))
    list(itertools.islice(loader, 2 * STEP))
    _, state = step_by_step(many_shards, tokenizer, 1, end=STEP)
    assert data.state_dict(STEP * BATCH) == state


def test_workers_change_no_sample(tokenizer):
    with_worker = train_loader(in_memory(tokenizer), batch_size=8, num_workers=1)
    assert ids(with_worker) == ids(train_loader(in_memory(tokenizer), batch_size=8))


def test_reading_ahead_changes_no_sample(tokenizer, monkeypatch):
    ahead = ids(train_loader(many_shards(tokenizer), batch_size=BATCH))
    monkeypatch.setattr(streaming, "Prefetch", lambda batches, _: batches)
    assert ids(train_loader(many_shards(tokenizer), batch_size=BATCH)) == ahead


def fail(batches):
    raise ZeroDivisionError


@pytest.mark.parametrize("use", [next, list, fail])
def test_the_thread_ends_with_the_loop(tokenizer, use):
    before = set(threading.enumerate())
    batches = iter(train_loader(many_shards(tokenizer), batch_size=BATCH))
    next(batches)
    (thread,) = set(threading.enumerate()) - before
    assert thread.is_alive()
    with contextlib.suppress(ZeroDivisionError):
        use(batches)
    del batches
    thread.join(60)
    assert not thread.is_alive()


@pytest.mark.parametrize("make", [in_memory, many_shards])
def test_a_batch_is_what_a_model_takes(tokenizer, make):
    state = torch.get_rng_state()
    data = make(tokenizer)
    batch = next(iter(train_loader(data, batch_size=BATCH)))
    assert batch["input_ids"].dtype == batch["labels"].dtype == torch.int64
    assert batch["input_ids"].shape == (BATCH, 4 if isinstance(data, TrainingData) else 8)
    assert torch.equal(batch["input_ids"], batch["labels"])
    assert batch["input_ids"].data_ptr() != batch["labels"].data_ptr()
    assert torch.equal(torch.get_rng_state(), state)


def test_what_a_stream_cannot_do(tokenizer):
    with pytest.raises(ConfigError, match=r"^training\.dataloader_num_workers=2: a stream is read by .*; use 0$"):
        train_loader(many_shards(tokenizer), batch_size=2, num_workers=2)
    message = r"^data\.stream_lanes=4 is not a multiple of the 3 processes that read different data; set it to 6, or"
    with pytest.raises(ConfigError, match=message):
        train_loader(many_shards(tokenizer), batch_size=2, ranks=3)
