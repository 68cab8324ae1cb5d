import json
import math
import threading
from collections import Counter
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moepp.data import DataSpec, SourceSpec, StreamingData, TrainingData, build_data, load_corpus, reading
from moepp.data.hub import Stream
from moepp.data.packing import encode
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


def ids(data, first=0):
    return [sample for batch in data.micro_batches(1, first=first) for sample in batch["input_ids"].tolist()]


SHARDS = [[f"shard {shard} document {number} " * (number % 5 + 1) for number in range(shard + 3)] for shard in range(4)]


def make(tokenizer, num_samples=300, seed=1, lanes=1):
    streams = [Stream(len(SHARDS), SHARDS.__getitem__), Stream.of([f"the lazy dog {n}" for n in range(9)])]
    return StreamingData(
        *(streams, ["a", "b"], [0.8, 0.2], tokenizer),
        sequence_length=16,
        seed=seed,
        num_samples=num_samples,
        lanes=lanes,
    )


def one_source(tokenizer, stream, num_samples, **settings):
    settings = {"sequence_length": 8, "seed": 0, "num_samples": num_samples} | settings
    return StreamingData([stream], ["x"], [1.0], tokenizer, **settings)


@settings(max_examples=25, deadline=None)
@given(sample=st.integers(0, 300), ahead=st.integers(0, 40), characters=st.sampled_from([1, 200, 10_000]))
def test_resume_is_the_tail_of_the_uninterrupted_run(tokenizer, sample, ahead, characters):
    whole = ids(make(tokenizer))
    assert len(whole) == 300
    interrupted = make(tokenizer)
    with closing(interrupted.micro_batches(1)) as batches:
        list(islice(batches, sample + ahead))  # a loader reads ahead of what is trained on
    state = json.loads(json.dumps(interrupted.state_dict(sample)))
    resumed = make(tokenizer)
    resumed.load_state_dict(state)
    assert resumed.state_dict(sample) == state
    with pytest.MonkeyPatch.context() as patch:  # how much is tokenised at once is no part of the state
        patch.setattr(reading, "_CHARACTERS", characters)
        assert ids(resumed, sample) == whole[sample:]


def test_one_lane_reads_shard_by_shard(tokenizer):
    """The definition, in full: the order in which documents are read is not to change between versions."""
    documents = [
        document
        for epoch in range(9)
        for shard in np.random.default_rng([5, 0, epoch]).permutation(len(SHARDS))
        for document in SHARDS[shard]
    ]
    tokens = encode(documents, tokenizer)
    data = one_source(tokenizer, Stream(len(SHARDS), SHARDS.__getitem__), 200, seed=5)
    assert ids(data) == tokens[: 200 * 8].reshape(-1, 8).tolist()


@pytest.mark.parametrize("shards", [1, 4, 5, 18])
@pytest.mark.parametrize("lanes", [1, 2, 4])
def test_all_lanes_together_read_every_document_once_a_pass(tokenizer, shards, lanes):
    texts = [[f"shard {shard} document {number}" for number in range(shard % 3 * 5 + 1)] for shard in range(shards)]
    documents = sorted(document for shard in texts for document in shard)
    passes = [[], []]
    for lane in range(lanes):
        reader = reading.Reader(
            *(Stream(shards, texts.__getitem__), "x", tokenizer, reading.Position(), (0, 0)), lane=lane, lanes=lanes
        )
        for text, position in reader._read(reading.Position()):
            if position.epoch >= 2:
                break
            passes[position.epoch].append(text)
    assert sorted(passes[0]) == sorted(passes[1]) == documents


def test_seeds_and_passes_differ(tokenizer):
    data = [one_source(tokenizer, Stream.of("abcdefgh"), 8, sequence_length=16, seed=seed) for seed in (1, 2)]
    first, second = ([tokenizer.decode(block) for block in ids(stream)] for stream in data)
    assert len({*first, *second}) == 16, "two tokens a document: each sample is one pass"


def test_a_source_smaller_than_the_lanes_is_read_by_each(tokenizer):
    """By one after the other: each document belongs to another lane in each pass."""
    data = one_source(tokenizer, Stream.of(["fox", "dog", "cat"]), 64, sequence_length=4, lanes=8)
    batches = list(data.micro_batches(1))
    for lane in range(8):
        text = "".join(tokenizer.decode(batch["input_ids"][0]) for batch in batches[lane::8])
        assert set(text.split("<|endoftext|>")[:-1]) == {"fox", "dog", "cat"}


@pytest.mark.parametrize("lanes", [1, 4])
@pytest.mark.parametrize("shards", [2, 6])
def test_no_documents(tokenizer, lanes, shards):
    data = one_source(tokenizer, Stream(shards, lambda _: []), 5, lanes=lanes)
    with pytest.raises(DataError, match=r"^data source 'x' has no training documents; check its split and filters$"):
        next(data.micro_batches(1))


def test_an_error_arrives_as_it_is(tokenizer):
    def read(shard):
        yield "quick " * 100
        raise DataError("data.sources[0].dataset='x' cannot be read after row 1: gone; repair the data")

    before = set(threading.enumerate())
    batches = one_source(tokenizer, Stream(1, read), 500).micro_batches(1)
    with pytest.raises(DataError, match=r"^data\.sources\[0\]\.dataset='x' cannot be read after row 1: gone; repair"):
        next(batches)
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
        assert not thread.is_alive()


def test_a_state_of_other_sources_or_lanes(tokenizer):
    data, state = make(tokenizer), make(tokenizer, lanes=2).state_dict(0)
    with pytest.raises(DataError, match=r"^data state is of 2 lanes and data\.stream_lanes=1; resume with the recipe"):
        data.load_state_dict(state)
    state = one_source(tokenizer, Stream.of(["fox"]), 5).state_dict(0)
    with pytest.raises(DataError, match=r"^data state is of the sources \['x'\] and the recipe has \['a', 'b'\]"):
        data.load_state_dict(state)


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
        spec = DataSpec(sequence_length=8, sources=[source], validation_fraction=0.2, stream_lanes=2)
        (found,) = load_corpus(spec).sources
        assert sorted([*found.train, *found.validation]) == sorted(every)
        assert list(found.validation)
        built[streaming] = build_data(spec, tokenizer, seed=0, num_samples=60)
    assert isinstance(built[False].train, TrainingData)
    assert isinstance(built[True].train, StreamingData)
    assert built[True].hash == build_data(spec, tokenizer, seed=0, num_samples=9).hash != built[False].hash
    held_out = built[False].validation["s"], built[True].validation["s"]
    assert held_out[0].blocks.tolist() == held_out[1].blocks.tolist()
    assert held_out[0].bytes_per_token == held_out[1].bytes_per_token

    stream = built[True].train
    whole = ids(stream)
    assert len(whole) == 60
    stream.load_state_dict(stream.state_dict(40))
    assert ids(stream, 40) == whole[40:]


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
    assert spec.stream_lanes == 32
    spec.sequence_length, spec.stream_lanes = 8, 2
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
