"""``moepp generate``."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, TextStreamer
from transformers.utils import logging

from ..data import load_tokenizer
from ..errors import ConfigError
from ..model import MoEPPForCausalLM, load_model
from ..model.sampling import CHAT_TEMPLATE, ONLY_SAMPLING, check_sampling, encode_prompt, new_tokens
from .options import option_name

DEFAULT_NEW_TOKENS = 128


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """transformers' settings; None leaves one as the model's ``generation_config.json`` says."""

    max_new_tokens: int | None
    do_sample: bool | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    seed: int | None

    def given(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if value is not None}


def run_generate(
    path: Path, prompt: str | None, sampling: Sampling, *, stdin: bool, chat: bool, dtype: str, device: str, pack: bool
) -> None:
    """Prints a continuation of the prompt on standard output, as it is generated.

    Raises:
        ConfigError: an option cannot work.
        DataError: the folder holds no model, or the prompt is longer than the model's context.
    """
    given = sampling.given()
    check_sampling(given, option_name)
    if (prompt is None) != stdin:
        raise ConfigError("give a PROMPT, or --stdin to read one from standard input, and not both")
    logging.disable_progress_bar()
    model, tokenizer = open_saved(path, dtype=dtype, device=device, pack=pack)
    samples = given.get("do_sample", bool(model.generation_config.do_sample))
    for name in ONLY_SAMPLING:
        if name in given and not samples:
            raise ConfigError(f"{option_name(name)}={given[name]} has no effect without --do-sample; add it")
    text = _read_stdin() if prompt is None else prompt
    if chat:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}],
            chat_template=None if tokenizer.chat_template else CHAT_TEMPLATE,
            add_generation_prompt=True,
            tokenize=False,
        )
    ids = encode_prompt(tokenizer, str(text))
    given["max_new_tokens"] = new_tokens(
        *(len(ids), model.config.max_position_embeddings, sampling.max_new_tokens),
        name=option_name("max_new_tokens"),
        default=DEFAULT_NEW_TOKENS,
    )
    stream(model, tokenizer, ids, given)


def open_saved(
    path: Path, *, dtype: str, device: str, pack: bool = False
) -> tuple[MoEPPForCausalLM, PreTrainedTokenizerBase]:
    """A saved model and its tokenizer; ``pack`` is :meth:`MoEPPForCausalLM.pack_for_inference`.

    Raises:
        DataError, ConfigError, BackendUnavailable: as :func:`load_model`; or the tokenizer is damaged or too large.
    """
    model = load_model(path, dtype=dtype, device=device)
    tokenizer = load_tokenizer(str(path), vocab_size=model.config.vocab_size)
    if pack:
        model.pack_for_inference()
    return model, tokenizer


def stream(
    model: MoEPPForCausalLM, tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], settings: dict[str, Any]
) -> None:
    """Generates and prints, word by word."""
    if (seed := settings.pop("seed", None)) is not None:
        torch.manual_seed(seed)
    prompt = torch.tensor([ids], device=model.device)
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    try:
        model.generate(prompt, attention_mask=torch.ones_like(prompt), streamer=streamer, **settings)  # pyright: ignore[reportAttributeAccessIssue]
    except KeyboardInterrupt:
        streamer.end()  # what it holds back of an unfinished word
        raise


def _read_stdin() -> str:
    """All of it, without the line end that ``echo`` adds."""
    try:
        return sys.stdin.read().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise ConfigError(f"--stdin: the text is not UTF-8 at byte {error.start}; convert it") from error
