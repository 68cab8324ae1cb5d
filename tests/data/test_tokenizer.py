import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moepp.data import check_vocabulary, load_tokenizer, tokenizer_hash, train_tokenizer
from moepp.errors import ConfigError, DataError

TEXTS = ["the quick brown fox " * 30, "def f(x):\n    return x\n" * 30, "Zwölf Boxkämpfer jagen 日本 " * 10]


@settings(max_examples=100, deadline=None)
@given(text=st.text())
def test_any_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize("text", ["a<|endoftext|>b", "  two  spaces , and\r\n\ttabs .", "\ufeff\u2028\0"])
def test_awkward_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_training_is_deterministic():
    assert tokenizer_hash(train_tokenizer(TEXTS, 400)) == tokenizer_hash(train_tokenizer(iter(TEXTS), 400))
    assert tokenizer_hash(train_tokenizer(TEXTS, 400)) != tokenizer_hash(train_tokenizer(TEXTS, 300))


def test_saved_and_loaded(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert tokenizer_hash(loaded) == tokenizer_hash(tokenizer)
    assert (loaded.eos_token, loaded.bos_token, loaded.pad_token) == ("<|endoftext|>", "<|endoftext|>", "<|pad|>")
    assert loaded.is_fast
    for text in TEXTS:
        assert loaded.decode(loaded(text)["input_ids"]) == text


def test_what_cannot_be_loaded(tokenizer, tmp_path):
    with pytest.raises(DataError, match=r"^tokenizer='.*' cannot be loaded: .*; give a folder .*$"):
        load_tokenizer(str(tmp_path / "missing"))
    tokenizer.save_pretrained(tmp_path)
    config = (tmp_path / "tokenizer_config.json").read_text().replace('"eos_token"', '"was_eos_token"')
    (tmp_path / "tokenizer_config.json").write_text(config)
    with pytest.raises(DataError, match=r"^tokenizer\.eos_token is not set"):
        load_tokenizer(str(tmp_path))


def test_vocabulary_bounds(tokenizer):
    with pytest.raises(ConfigError, match=r"^tokenizer\.vocab_size=100 has no room .* at least 258$"):
        train_tokenizer(TEXTS, 100)
    check_vocabulary(tokenizer, len(tokenizer))
    with pytest.raises(ConfigError, match=r"^model\.vocab_size=128 is smaller than the tokenizer's 300; raise it"):
        check_vocabulary(tokenizer, 128)
