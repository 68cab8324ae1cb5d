import json
import math
from collections import Counter
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from moepp.data import DataSpec, SourceSpec, StreamingData, TrainingData, build_data, load_corpus
from moepp.data import streaming as module
from moepp.data.hub import Stream
from moepp.errors import DataError

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def write_jsonl(path, texts, field="text"):
    path.write_text("".join(json.dumps({field: text}) + "\n" for text in texts))
    return str(path)


def ids(samples):
    return [sample["input_ids"].tolist() for sample in samples]


SHARDS = [[f"shard {shard} document {number} " * (number % 5 + 1) for number in range(shard + 3)] for shard in range(4)]


def make(tokenizer, num_samples=300, seed=1):
    streams = [Stream(len(SHARDS), SHARDS.__getitem__), Stream.of([f"the lazy dog {n}" for n in range(9)])]
    return StreamingData(
        streams, ["a", "b"], [0.8, 0.2], tokenizer, sequence_length=16, seed=seed, num_samples=num_samples
    )


@settings(max_examples=25, deadline=None)
@given(sample=st.integers(0, 300), ahead=st.integers(0, 40), every=st.integers(1, 70))
def test_resume_is_the_tail_of_the_uninterrupted_run(tokenizer, sample, ahead, every):
    whole = ids(make(tokenizer))
    assert len(whole) == 300
    skipped = make(tokenizer)
    skipped.skip(sample)
    assert ids(skipped) == whole[sample:]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_SNAPSHOT_EVERY", every)
        interrupted = make(tokenizer)
        list(islice(interrupted, sample + ahead))  # a loader reads ahead of what is trained on
        state = json.loads(json.dumps(interrupted.state_dict(sample)))
        resumed = make(tokenizer)
        resumed.load_state_dict(state)
        assert ids(resumed) == whole[sample:]
        assert resumed.state_dict(sample)["consumed"] == sample


def test_state_is_close_and_of_these_sources(tokenizer, monkeypatch):
    monkeypatch.setattr(module, "_SNAPSHOT_EVERY", 32)
    data = make(tokenizer)
    list(islice(data, 200))
    state = data.state_dict(170)
    assert state["sample"] == 160
    with pytest.raises(DataError, match=r"^data state is of the sources \['x'\] and the recipe has \['a', 'b'\]"):
        data.load_state_dict({**state, "positions": {"x": [0, 0, 0, 0]}})


def test_every_document_once_a_pass(tokenizer):
    documents = [document for shard in SHARDS for document in shard]
    data = StreamingData(
        [Stream(len(SHARDS), SHARDS.__getitem__)], ["a"], [1.0], tokenizer, sequence_length=8, seed=0, num_samples=500
    )
    tokens = [token for block in ids(data) for token in block]
    text = tokenizer.decode(tokens).split("<|endoftext|>")
    passes = [text[start : start + len(documents)] for start in (0, len(documents))]
    assert sorted(passes[0]) == sorted(passes[1]) == sorted(documents)
    assert passes[0] != passes[1], "shards are shuffled by pass"
    assert ids(make(tokenizer, seed=1)) != ids(make(tokenizer, seed=2))


def test_no_documents(tokenizer):
    data = StreamingData([Stream(2, lambda _: [])], ["x"], [1.0], tokenizer, sequence_length=8, seed=0, num_samples=5)
    with pytest.raises(DataError, match=r"^data source 'x' has no training documents"):
        next(iter(data))


def test_loader_without_workers(tokenizer, monkeypatch):
    assert next(iter(DataLoader(make(tokenizer), batch_size=4)))["labels"].shape == (4, 16)
    monkeypatch.setattr(module, "get_worker_info", lambda: SimpleNamespace(num_workers=1))
    with pytest.raises(DataError, match=r"^dataloader_num_workers=1: every worker .*; use 0$"):
        next(iter(make(tokenizer)))


@pytest.fixture(params=["json", "parquet"])
def local_dataset(request, tmp_path):
    """A builder's name and a list of its files."""
    import datasets

    files = []
    for shard, texts in enumerate(SHARDS):
        path = tmp_path / f"{shard}.{request.param}"
        if request.param == "json":
            write_jsonl(path, texts, "body")
        else:
            datasets.Dataset.from_dict({"id": list(range(len(texts))), "body": texts}).to_parquet(path)
        files.append(str(path))
    (tmp_path / "list.txt").write_text("\n".join(files) + "\n")
    return {"dataset": request.param, "data_files": [f"@{tmp_path}/list.txt"], "text_field": "body"}


def test_datasets_library(local_dataset, tokenizer):
    every = [document for shard in SHARDS for document in shard]
    built = {}
    for streaming in (False, True):
        source = SourceSpec("s", **local_dataset, streaming=streaming)
        spec = DataSpec(sequence_length=8, sources=[source], validation_fraction=0.2)
        (found,) = load_corpus(spec).sources
        assert sorted([*found.train, *found.validation]) == sorted(every)
        assert list(found.validation)
        built[streaming] = build_data(spec, tokenizer, seed=0, num_samples=60)
        assert len(list(iter(built[streaming].train))) == 60 if streaming else True
    assert isinstance(built[False].train, TrainingData)
    assert isinstance(built[True].train, StreamingData)
    assert built[True].hash == build_data(spec, tokenizer, seed=0, num_samples=9).hash != built[False].hash
    held_out = built[False].validation["s"], built[True].validation["s"]
    assert ids(held_out[0]) == ids(held_out[1])
    assert held_out[0].bytes_per_token == held_out[1].bytes_per_token

    stream = built[True].train
    whole = ids(stream)
    stream.load_state_dict(stream.state_dict(37))
    assert ids(stream) == whole[37:]


def test_validation_split(local_dataset):
    source = SourceSpec("s", **local_dataset, split="train[:50%]", validation_split="train[50%:]")
    (found,) = load_corpus(DataSpec(sources=[source])).sources
    assert found.train + found.validation == [document for shard in SHARDS for document in shard]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_field": "bdy"}, r"^data\.sources\[0\]\.text_field='bdy' .*; did you mean 'body'\?$"),
        ({"split": "dev"}, r"^data\.sources\[0\]\.dataset='\w+', split 'dev' cannot be opened: .*; check the names$"),
        ({"data_files": ["missing.json"]}, r"split 'train' cannot be opened: .*missing.*; check the names$"),
        ({"data_files": ["@missing.txt"]}, r"^data\.sources\[0\]\.data_files='@missing.txt': the list cannot be read"),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_datasets_that_cannot_be_read(local_dataset, change, message, streaming):
    source = SourceSpec("s", **{**local_dataset, **change}, streaming=streaming)
    with pytest.raises(DataError, match=message) as error:
        list(load_corpus(DataSpec(sources=[source])).sources[0].train)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("strategy", [1, 2])
def test_paper_mixtures(strategy, tokenizer, tmp_path):
    """The recipe as it is, but each data set replaced by a file whose text names its source."""
    from omegaconf import OmegaConf  # not at the top: make gpu collects this file where it is missing

    recipe = OmegaConf.merge(
        OmegaConf.structured(DataSpec), OmegaConf.load(RECIPES / f"paper-mixture-{strategy}.yaml").data
    )
    spec = OmegaConf.to_object(recipe)
    assert isinstance(spec, DataSpec)
    assert spec.sequence_length == 2048
    assert len(spec.sources) == 7
    assert sum(source.weight for source in spec.sources) == pytest.approx(100)
    spec.sequence_length = 8
    for letter, source in zip("abcdefg", spec.sources, strict=True):
        assert source.streaming
        file = tmp_path / f"{source.name}.jsonl"
        source.data_files = [write_jsonl(file, [letter * (20 + number) for number in range(300)])]
        source.dataset, source.validation_split = "json", None
    data = build_data(spec, tokenizer, seed=0, num_samples=3000)
    assert set(data.validation) == {source.name for source in spec.sources}
    drawn = Counter(max("abcdefg", key=tokenizer.decode(block).count) for block in ids(data.train))
    for letter, source in zip("abcdefg", spec.sources, strict=True):
        share = source.weight / 100
        assert abs(drawn[letter] / 3000 - share) < 5 * math.sqrt(share * (1 - share) / 3000), source.name
