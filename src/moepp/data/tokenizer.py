"""Tokenizers: one from a folder or the hub, or a byte-level BPE trained on the corpus in seconds."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..errors import ConfigError, DataError, first_line
from .hashing import digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
PADDING = "<|pad|>"
_BYTES = 256


def load_tokenizer(path_or_name: str, *, vocab_size: int | None = None) -> "PreTrainedTokenizerBase":
    """A saved tokenizer (a folder) or one of the hub's (a name).

    Args:
        vocab_size: the rows of the embedding of the model that it is used with.

    Raises:
        DataError: it cannot be loaded, has no end-of-text token to put between documents, or has ids that the
            embedding has no row for.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path_or_name, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError, AttributeError, TypeError) as error:
        if first_line(error).startswith("Couldn't instantiate the backend tokenizer"):
            reason = "no tokenizer.json or other tokenizer that transformers knows is there"
        else:
            reason = first_line(error)
        raise DataError(
            f"tokenizer={path_or_name!r} cannot be loaded: {reason}; "
            "give a folder written by save_pretrained, or a Hugging Face name and a connection"
        ) from error
    check_end_of_text(tokenizer)
    if vocab_size is not None and len(tokenizer) > vocab_size:
        raise DataError(
            f"tokenizer={path_or_name!r} has {len(tokenizer)} entries, more than the {vocab_size} rows of the model's "
            "embedding; use the tokenizer that the model was trained with"
        )
    return tokenizer


def train_tokenizer(documents: Iterable[str], vocab_size: int) -> "PreTrainedTokenizerFast":
    """Train byte-level BPE; the same documents give the same tokenizer. About a second for 8 MB.

    Any text is encoded and comes back exactly: there is no unknown token. ``<|endoftext|>`` is both the end and the
    beginning of a text; ``<|pad|>`` pads.

    Args:
        documents: what to learn from; :func:`~moepp.data.sources.sample_documents` keeps it short.
        vocab_size: the most entries; short texts give fewer.

    Raises:
        ConfigError: ``vocab_size`` has no room for the 256 bytes and 2 special tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special_tokens = [END_OF_TEXT, PADDING]
    if vocab_size < _BYTES + len(special_tokens):
        raise ConfigError(
            f"tokenizer.vocab_size={vocab_size} has no room for {_BYTES} bytes and {len(special_tokens)} "
            "special tokens; use at least 258"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special_tokens,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=PADDING,
        clean_up_tokenization_spaces=False,
    )


def tokenizer_hash(tokenizer: "PreTrainedTokenizerBase") -> str:
    """sha256 of what turns text into ids: the whole of a fast tokenizer, the vocabulary of a slow one."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return digest([backend.to_str(), tokenizer.eos_token_id])
    return digest([sorted(tokenizer.get_vocab().items()), tokenizer.eos_token_id])


def check_vocabulary(tokenizer: "PreTrainedTokenizerBase", vocab_size: int) -> None:
    """Raise ``ConfigError`` when the model has no row for some of the tokenizer's ids."""
    if len(tokenizer) > vocab_size:
        raise ConfigError(
            f"model.vocab_size={vocab_size} is smaller than the tokenizer's {len(tokenizer)}; "
            "raise it, or train a smaller tokenizer"
        )


def check_end_of_text(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The id that ends a document; ``DataError`` when the tokenizer has none."""
    if tokenizer.eos_token_id is None:
        raise DataError("tokenizer.eos_token is not set, and documents are separated by it; set one and save it")
    return int(tokenizer.eos_token_id)  # pyright: ignore[reportArgumentType]
