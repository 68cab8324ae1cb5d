import numpy as np
import pytest
import torch

from moepp.data import TrainingData, train_loader
from moepp.errors import ConfigError

from .test_streaming import make


def in_memory(num_samples=48):
    blocks = [np.arange(4 * count, dtype=np.uint16).reshape(count, 4) + 1000 * count for count in (5, 9)]
    return TrainingData(blocks, [0.5, 0.5], seed=3, num_samples=num_samples)


def ids(loader):
    return [batch["input_ids"].tolist() for batch in loader]


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("first", [0, 8])
def test_any_number_of_ranks_reads_the_same_micro_batches(ranks, first):
    data = in_memory()
    whole = [[data[number]["input_ids"].tolist() for number in range(m * 3, m * 3 + 3)] for m in range(16)]
    loaders = [train_loader(data, batch_size=3, rank=rank, ranks=ranks, first=first) for rank in range(ranks)]
    assert {len(loader) for loader in loaders} == {16 // ranks}, "the whole run's, wherever it starts"
    steps = zip(*map(ids, loaders), strict=True)
    assert [batch for step in steps for batch in step] == whole[first:]


def test_workers_change_no_sample():
    assert ids(train_loader(in_memory(), batch_size=8, num_workers=1)) == ids(train_loader(in_memory(), batch_size=8))


def test_a_batch_is_what_a_model_takes(tokenizer):
    state = torch.get_rng_state()
    for data in (in_memory(), make(tokenizer)):
        batch = next(iter(train_loader(data, batch_size=2)))
        assert batch["input_ids"].dtype == batch["labels"].dtype == torch.int64
        assert batch["input_ids"].shape == (2, 4 if isinstance(data, TrainingData) else 16)
        assert torch.equal(batch["input_ids"], batch["labels"])
    assert torch.equal(torch.get_rng_state(), state)


def test_a_stream_takes_no_workers(tokenizer):
    with pytest.raises(ConfigError, match=r"^training\.dataloader_num_workers=2: a stream is read by .*; use 0$"):
        train_loader(make(tokenizer), batch_size=2, num_workers=2)
