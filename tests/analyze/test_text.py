"""Documents as windows of tokens, and tokens as something to read."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from moepp.analyze import Text
from moepp.analyze.text import Encoded, _parts, check_window, encode_texts, token_texts
from moepp.data import encode, train_tokenizer
from moepp.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(["the cat and the dog and the cow"] * 4, 270)


def text(name: str, source: str, words: int) -> Text:
    return Text(name, source, "x" * words)  # no pair of it was learnt: one token a character


@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=6), budget=st.integers(0, 120))
def test_a_budget_is_used_up_in_parts_as_equal_as_sizes_allow(sizes: list[int], budget: int) -> None:
    parts = _parts(sizes, budget)
    assert sum(parts) == min(budget, sum(sizes))
    assert all(0 <= part <= size for part, size in zip(parts, sizes, strict=True))
    cut = [part for part, size in zip(parts, sizes, strict=True) if part < size]
    assert max(parts) <= min(cut, default=40) + 1, "nobody gets more than one that could have taken more"


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=8), window=st.integers(1, 12))
def test_windows_hold_every_token_once_and_stay_in_their_document(lengths: list[int], window: int) -> None:
    spans = Encoded((), tuple(np.zeros(length, np.int32) for length in lengths)).spans(window)
    covered = [place for first, end in spans for place in range(first, end)]
    assert covered == list(range(sum(lengths)))
    ends = set(np.cumsum(lengths).tolist())
    assert all(end - first == window or end in ends for first, end in spans)
    assert all(0 < end - first <= window for first, end in spans)
    assert ends <= {end for _, end in spans}


def test_documents_are_cut_to_equal_parts_of_their_sources(tokenizer: PreTrainedTokenizerFast) -> None:
    texts = [text("a1", "a", 7), text("b1", "b", 50), text("a2", "a", 30), text("c1", "c", 2), text("a3", "a", 9)]
    encoded = encode_texts(texts, tokenizer, 22)
    assert [(d.name, d.source, len(ids)) for d, ids in zip(encoded.documents, encoded.ids, strict=True)] == [
        ("a1", "a", 7),
        ("b1", "b", 10),
        ("a2", "a", 3),
        ("c1", "c", 2),
    ]


def test_a_budget_is_met_however_many_characters_a_token_has() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"x" * 99: 0, "<end>": 1}
    backend = Tokenizer(models.WordLevel(words, unk_token="<end>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")
    for there in (30, 500):
        encoded = encode_texts([Text("n", "s", " ".join(["x" * 99] * there))], tokenizer, 100)
        assert encoded.ids[0].tolist() == [0] * min(there, 100)


def test_without_a_limit_every_token_is_there_and_none_is_added(tokenizer: PreTrainedTokenizerFast) -> None:
    words = ["the cat", "", "and <|endoftext|> the"]
    encoded = encode_texts([Text(w, "s", w) for w in words], tokenizer)
    assert [document.name for document in encoded.documents] == [words[0], words[2]]
    for ids, word in zip(encoded.ids, (words[0], words[2]), strict=True):
        assert tokenizer.eos_token_id not in ids
        assert tokenizer.decode(ids) == word
        assert ids.tolist() == encode([word], tokenizer)[:-1].tolist()


def test_the_hash_is_of_tokens_and_documents_not_of_names(tokenizer: PreTrainedTokenizerFast) -> None:
    def hash_of(*words: str, name: str = "n") -> str:
        return encode_texts([Text(name, "s", word) for word in words], tokenizer).hash

    assert hash_of("xy", "z") == hash_of("xy", "z", name="other")
    assert len({hash_of("xy", "z"), hash_of("x", "yz"), hash_of("xyz"), hash_of("xy", "x")}) == 4


def test_no_token_at_all_is_one_line(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match=r"^the text holds no tokens; give a file with text in it$"):
        encode_texts([Text("n", "s", "")], tokenizer)


def test_windows_that_cannot_be_are_one_line() -> None:
    encoded = Encoded((), (np.zeros(9, np.int32), np.zeros(30, np.int32)))
    assert check_window(encoded, None, 64) == 30
    assert check_window(encoded, None, 16) == 16
    assert check_window(encoded, 30, 64) == 30
    with pytest.raises(
        DataError, match=r"^--window=31 is more than the 30 tokens of the longest document; lower it, le"
    ):
        check_window(encoded, 31, 64)
    for window in (0, 65):
        with pytest.raises(
            ConfigError, match=rf"^--window={window} is outside \[1, 64\], the model's context; lower it$"
        ):
            check_window(encoded, window, 64)


def test_byte_level_tokens_are_readable(tokenizer: PreTrainedTokenizerFast) -> None:
    for sample in ("the cat\n", "é–🙂", "\x00\xad \x7f"):
        ids = encode([sample], tokenizer)[:-1].tolist()
        shown = token_texts(tokenizer, ids)
        parts = re.split(r"\\x(..)", "".join(shown[token] for token in ids))
        data = [bytes.fromhex(part) if n % 2 else part.encode() for n, part in enumerate(parts)]
        assert b"".join(data).decode() == sample
    (and_,) = encode([" and"], tokenizer)[:-1].tolist()
    first, second = encode(["é"], tokenizer)[:-1].tolist()
    assert token_texts(tokenizer, [and_, first, second]) == {and_: " and", first: r"\xc3", second: r"\xa9"}


def test_special_tokens_show_their_names(tokenizer: PreTrainedTokenizerFast) -> None:
    assert token_texts(tokenizer, [tokenizer.eos_token_id]) == {tokenizer.eos_token_id: "<|endoftext|>"}


def test_sentencepiece_tokens_keep_their_space_and_bytes_their_names() -> None:
    from tokenizers import Tokenizer, decoders, models

    vocabulary = {
        "\u2581the": 0,
        "the": 1,
        "<0xE2>": 2,
        "<unk>": 3,
        "\u2581": 4,
        "\u2581\u2581": 5,
        "\u2581\u2581\u2581a": 6,
    }
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    texts = [" the", "the", "<0xE2>", "<unk>", " ", "  ", "   a"]
    assert token_texts(tokenizer, range(7)) == dict(enumerate(texts))
