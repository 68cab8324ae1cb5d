"""What a client asks, in OpenAI's terms, made into what transformers' handlers are shown: checked, and with room.

transformers ignores much that it doesn't know, builds its settings in three places, and generates past the end of a
model's context. Here a request is either translated without a remainder or refused with the field, the value and the
rule.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from transformers import GenerationConfig, PreTrainedTokenizerBase

from ..config import is_number
from ..errors import ConfigError, DataError, MoEPPError, nearest
from ..model.sampling import RULES, check_sampling, new_tokens, shown, start_token, valid_text

DEFAULT_NEW_TOKENS = 1024
ROLES = ("system", "developer", "user", "assistant", "tool")
MAX_STOPS = 4
MAX_STOP = 64
"""Characters; transformers works through the vocabulary for each before it begins to answer."""
# Settings that transformers knows and OpenAI doesn't, as other servers take them.
_EXTENSIONS = ("top_k", "min_p", "repetition_penalty")
_SAMPLING = ("temperature", "top_p", "seed", "stop", "logit_bias", *_EXTENSIONS)
# What OpenAI's clients may send, by the values that ask for nothing: any other would have to be obeyed. None asks for
# nothing anywhere.
_NEUTRAL: dict[str, Callable[[Any], bool]] = {
    **{name: lambda value: value == 1 for name in ("n", "best_of")},
    **{name: lambda value: value == 0 for name in ("presence_penalty", "frequency_penalty")},
    **{name: lambda value: not value for name in ("echo", "logprobs", "top_logprobs", "suffix")},
    **{name: lambda value: not value for name in ("tools", "functions", "audio", "prediction", "web_search_options")},
    **{name: lambda value: value == "none" for name in ("tool_choice", "function_call", "reasoning_effort")},
    "modalities": lambda value: value == ["text"],
    "response_format": lambda value: value == {"type": "text"},
    **{name: lambda value: True for name in ("user", "store", "metadata", "service_tier", "parallel_tool_calls")},
    **{name: lambda value: True for name in ("stream_options", "safety_identifier", "prompt_cache_key")},
}


class NoSuchModel(MoEPPError):
    """A request names another model than the one that is served."""


@dataclass(frozen=True)
class Served:
    """The model behind the server, as far as requests are concerned."""

    name: str
    tokenizer: PreTrainedTokenizerBase
    context: int
    """Tokens, prompt and answer together."""
    generation: GenerationConfig
    """The model's own settings, for what a request leaves open."""


def completion(body: Any, served: Served) -> dict[str, Any]:
    """A request to ``/v1/completions`` as transformers takes it.

    Raises:
        NoSuchModel: it names another model.
        ConfigError, DataError: it cannot be answered; says which field, why and what to do.
    """
    fields = _fields(body, ("prompt", "max_tokens"), served)
    prompt = fields.get("prompt")
    if not isinstance(prompt, str):
        raise ConfigError(f"prompt={shown(prompt)} must be a string; send one request for each prompt")
    ids: Any = served.tokenizer(valid_text(prompt))["input_ids"]
    if not ids:
        ids = [start_token(served.tokenizer)]
        prompt = served.tokenizer.decode(ids)
    return _request(fields, ("max_tokens",), len(ids), served) | {"prompt": prompt}


def chat(body: Any, served: Served) -> dict[str, Any]:
    """A request to ``/v1/chat/completions`` as transformers takes it; raises as :func:`completion` does."""
    fields = _fields(body, ("messages", "max_tokens", "max_completion_tokens"), served)
    messages = fields.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ConfigError(f"messages={shown(messages)} must be a list of at least one message")
    said = [_message(message, f"messages[{index}]") for index, message in enumerate(messages)]
    try:
        text = served.tokenizer.apply_chat_template(said, add_generation_prompt=True, tokenize=False)
    except TemplateError as error:
        raise DataError(f"messages do not fit the model's chat template: {error}; change their roles") from error
    # The template's own start of text is in the text already, and transformers tokenises it the same way.
    ids: Any = served.tokenizer(valid_text(str(text)), add_special_tokens=False)["input_ids"]
    return _request(fields, ("max_completion_tokens", "max_tokens"), len(ids), served) | {"messages": said}


def _fields(body: Any, own: tuple[str, ...], served: Served) -> dict[str, Any]:
    """The request without what asks for nothing."""
    if not isinstance(body, dict):
        raise ConfigError(f"the body must be a JSON object, not {shown(body)}")
    known = ("model", "stream", *own, *_SAMPLING)
    fields = {name: value for name, value in body.items() if value is not None}
    for name, value in fields.items():
        if name in known:
            continue
        if name not in _NEUTRAL:
            raise ConfigError(f"{shown(name)} is not a field of this request; {nearest(name, known)}")
        if not _NEUTRAL[name](value):
            raise ConfigError(f"{name}={shown(value)} is not supported; leave {name} out")
    model = fields.get("model", served.name)
    if model != served.name:
        raise NoSuchModel(f"model={shown(model)} is not served here; use {served.name!r}, or leave model out")
    if not isinstance(fields.get("stream", False), bool):
        raise ConfigError(f"stream={shown(fields['stream'])} must be true or false")
    return {name: value for name, value in fields.items() if name in known}


def _request(fields: Mapping[str, Any], limits: tuple[str, ...], prompt: int, served: Served) -> dict[str, Any]:
    """The part that chats and completions share: all settings in the one place where transformers takes them whole."""
    settings = served.generation.to_diff_dict() | _sampling(fields, served)
    limit = next((name for name in limits if name in fields), limits[0])
    asked = fields.get(limit)
    if asked is not None:
        _check("max_new_tokens", asked, limit)
    settings["max_new_tokens"] = new_tokens(
        prompt, served.context, asked, name=limit, default=settings.get("max_new_tokens") or DEFAULT_NEW_TOKENS
    )
    settings.pop("max_length", None)
    request = {"model": served.name, "stream": fields.get("stream", False), "generation_config": json.dumps(settings)}
    if "seed" in fields:
        request["seed"] = fields["seed"]
    return request


def _sampling(fields: Mapping[str, Any], served: Served) -> dict[str, Any]:
    found: dict[str, Any] = {}
    given = {name: fields[name] for name in RULES if name in fields}
    if given.get("temperature") == 0 and is_number(given["temperature"]):  # OpenAI's way to ask for the likeliest
        del given["temperature"]
        found["do_sample"] = False
    elif any(name in given for name in ("temperature", "top_k", "top_p", "min_p")):
        found["do_sample"] = True
    for name, value in given.items():
        _check(name, value, name)
    found |= {name: value for name, value in given.items() if name != "seed"}
    if "stop" in fields:
        found["stop_strings"] = _stops(fields["stop"])
    if "logit_bias" in fields:
        found["sequence_bias"] = _bias(fields["logit_bias"], len(served.tokenizer))
    return {name: value for name, value in found.items() if value != []}


def _stops(value: Any) -> list[str]:
    stops = [value] if isinstance(value, str) else value
    if (
        not isinstance(stops, list)
        or len(stops) > MAX_STOPS
        or not all(isinstance(stop, str) and 0 < len(stop) <= MAX_STOP for stop in stops)
    ):
        raise ConfigError(
            f"stop={shown(value)} must be a string or a list of up to {MAX_STOPS}, each of 1 to {MAX_STOP} characters"
        )
    return [valid_text(stop) for stop in stops]


def _bias(value: Any, vocabulary: int) -> list[Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"logit_bias={shown(value)} must be an object from token ids to numbers")
    ids = set(map(str, range(vocabulary)))
    for token, bias in value.items():
        if token not in ids:
            raise ConfigError(f"logit_bias: {shown(token)} is no token id; they go from 0 to {vocabulary - 1}")
        if not is_number(bias) or not -100 <= bias <= 100:
            raise ConfigError(f"logit_bias: {shown(bias)} for token {token} must be a number in [-100, 100]")
    return [[[int(token)], float(bias)] for token, bias in value.items()]


def _message(message: Any, where: str) -> dict[str, str]:
    if not isinstance(message, dict):
        raise ConfigError(f"{where}={shown(message)} must be an object with role and content")
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise ConfigError(f"{where}.role={shown(role)} must be one of {', '.join(ROLES)}")
    for name, value in message.items():
        if name not in ("role", "content", "tool_calls") and value:  # clients send back empty fields of answers
            raise ConfigError(f"{where}: field {shown(name)} is not supported, here {shown(value)}; leave it out")
    if isinstance(content, list):
        parts = [part.get("text") for part in content if _is_text(part)]
        texts = [part for part in parts if isinstance(part, str)]
        content = " ".join(texts) if len(texts) == len(content) else None
    if not isinstance(content, str) or message.get("tool_calls"):
        raise ConfigError(f"{where}.content must be a string or a list of text parts; this model reads nothing else")
    return {"role": role, "content": valid_text(content)}


def _is_text(part: Any) -> bool:
    return isinstance(part, dict) and part.keys() == {"type", "text"} and part["type"] == "text"


def _check(rule: str, value: Any, name: str) -> None:
    check_sampling({rule: value}, lambda _: name)
