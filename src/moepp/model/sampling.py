"""What generating may be asked for: one set of rules, and transformers' names, for the command line and the server."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..config import is_int, is_number
from ..errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Rule = tuple[Callable[[Any], bool], str]
# Beyond the limits of temperature and penalty, scores overflow: there is nothing left to draw from.
RULES: dict[str, Rule] = {
    "max_new_tokens": (lambda value: is_int(value) and value >= 1, "an integer >= 1"),
    "do_sample": (lambda value: isinstance(value, bool), "true or false"),
    "temperature": (lambda value: is_number(value) and 1e-3 <= value <= 1e3, "a number in [0.001, 1000]"),
    "top_k": (lambda value: is_int(value) and value >= 0, "an integer >= 0, where 0 keeps all tokens"),
    "top_p": (lambda value: is_number(value) and 0 < value <= 1, "a number in (0, 1]"),
    "min_p": (lambda value: is_number(value) and 0 <= value <= 1, "a number in [0, 1]"),
    "repetition_penalty": (
        lambda value: is_number(value) and 1e-3 <= value <= 1e3,
        "a number in [0.001, 1000], where 1 is no penalty",
    ),
    "seed": (lambda value: is_int(value) and 0 <= value < 2**63, "an integer >= 0 and below 2**63"),
}
ONLY_SAMPLING = ("temperature", "top_k", "top_p", "min_p")
"""Without ``do_sample`` the most likely token is taken, and these have no say."""

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
"""For tokenizers without one: every message as a line, its role before it."""


def check_sampling(settings: Mapping[str, Any], name: Callable[[str], str] = str) -> None:
    """Checks values by the names of :data:`RULES`; ``name`` is what the user calls one.

    Raises:
        ConfigError: a value cannot work.
    """
    for key, value in settings.items():
        holds, rule = RULES[key]
        if not holds(value):
            raise ConfigError(f"{name(key)}={shown(value)} must be {rule}")


def shown(value: Any) -> str:
    """A value in an error, whatever a client sent."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def new_tokens(prompt: int, context: int, asked: int | None, *, name: str, default: int) -> int:
    """How many tokens to generate after a prompt of so many: those asked for, or ``default`` if there is room.

    Args:
        context: the positions that the model has, its ``max_position_embeddings``.
        name: what the user calls the number of new tokens.

    Raises:
        DataError: the prompt leaves no room.
        ConfigError: there is not as much room as asked for.
    """
    room = context - prompt
    if room < 1:
        raise DataError(
            f"the prompt has {prompt} tokens and the model a context of {context}, in which at least one must be left; "
            "shorten the prompt"
        )
    if asked is not None and asked > room:
        raise ConfigError(f"{name}={shown(asked)} exceeds the {room} tokens left after the prompt; lower it")
    return min(default, room) if asked is None else asked


def valid_text(text: str) -> str:
    """The text; ``DataError`` when it holds halves of characters, as JSON can, which no tokenizer reads."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"the text is no valid Unicode at character {error.start}; remove that character") from error
    return text


def encode_prompt(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """A prompt's token ids; an empty one is the token that begins a text.

    Raises:
        DataError: the text is no valid Unicode.
    """
    ids: Any = tokenizer(valid_text(text))["input_ids"]
    return ids or [start_token(tokenizer)]


def start_token(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The id of the token that begins a text."""
    start: Any = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return start
