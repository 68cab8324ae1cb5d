"""Requests translated without a remainder, or refused with the field, the value and the rule."""

import json
from typing import Any

import pytest

from moepp.data import load_tokenizer
from moepp.errors import MoEPPError
from moepp.model.sampling import CHAT_TEMPLATE
from moepp.serve.requests import NoSuchModel, Served, chat, completion

from ..model.factory import tiny_model
from ..saved import save_tiny

CONTEXT = 64


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    folder = save_tiny(tmp_path_factory.mktemp("served"))
    tokenizer = load_tokenizer(str(folder))
    tokenizer.chat_template = CHAT_TEMPLATE
    return Served("tiny", tokenizer, CONTEXT, tiny_model().generation_config)


def settings(request: dict[str, Any]) -> dict[str, Any]:
    return json.loads(request["generation_config"])


def ask(**fields: object) -> dict[str, Any]:
    return {"prompt": "def main", **fields}


def say(*contents: object, **fields: object) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content} for content in contents], **fields}


def test_a_request_that_says_nothing_but_its_prompt_is_given_all_the_room(served: Served) -> None:
    request = completion(ask(), served)
    used = len(served.tokenizer("def main")["input_ids"])
    assert request["prompt"] == "def main"
    assert request["model"] == "tiny"
    assert request["stream"] is False
    assert settings(request)["max_new_tokens"] == CONTEXT - used
    assert "do_sample" not in settings(request)


def test_a_long_context_is_not_filled_unasked(served: Served) -> None:
    wide = Served(served.name, served.tokenizer, 10**6, served.generation)
    assert settings(completion(ask(), wide))["max_new_tokens"] == 1024
    assert settings(completion(ask(max_tokens=5000), wide))["max_new_tokens"] == 5000


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"max_tokens": 7}, {"max_new_tokens": 7}),
        ({"temperature": 0.5}, {"do_sample": True, "temperature": 0.5}),
        ({"temperature": 0}, {"do_sample": False}),
        ({"temperature": 0.0, "top_p": 0.9}, {"do_sample": False, "top_p": 0.9}),
        ({"top_k": 7, "min_p": 0.1}, {"do_sample": True, "top_k": 7, "min_p": 0.1}),
        ({"repetition_penalty": 1.2}, {"repetition_penalty": 1.2}),
        ({"stop": "\n"}, {"stop_strings": ["\n"]}),
        ({"stop": ["a", "b"]}, {"stop_strings": ["a", "b"]}),
        ({"logit_bias": {"5": -100}}, {"sequence_bias": [[[5], -100.0]]}),
    ],
    ids=str,
)
def test_settings_reach_transformers_under_its_own_names(fields: dict, expected: dict, served: Served) -> None:
    found = settings(completion(ask(**fields), served))
    assert {name: found.get(name) for name in expected} == expected
    assert "temperature" in expected or "temperature" not in found
    assert found["max_new_tokens"] <= CONTEXT


def test_the_models_own_settings_are_kept(served: Served) -> None:
    own = tiny_model().generation_config
    own.update(do_sample=True, temperature=0.3, max_new_tokens=9, eos_token_id=4)
    theirs = Served("tiny", served.tokenizer, CONTEXT, own)
    assert (
        settings(completion(ask(), theirs)).items()
        >= {"do_sample": True, "temperature": 0.3, "eos_token_id": 4}.items()
    )
    assert settings(completion(ask(), theirs))["max_new_tokens"] == 9
    assert settings(completion(ask(temperature=0), theirs))["do_sample"] is False


def test_fields_that_ask_for_nothing_are_let_through(served: Served) -> None:
    nothing = {
        "n": 1,
        "logprobs": False,
        "presence_penalty": 0,
        "user": "me",
        "stream_options": {"include_usage": True},
    }
    assert completion(ask(**nothing, stop=[], seed=None, echo=None), served) == completion(ask(), served)


def test_an_empty_prompt_begins_a_text(served: Served) -> None:
    assert completion(ask(prompt=""), served)["prompt"] == "<|endoftext|>"


@pytest.mark.parametrize("prompt", ["def main", "", "<|endoftext|>"])
def test_a_prompt_is_tokenised_once(prompt: str, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, calls = type(served.tokenizer), []
    tokenise = kind.__call__
    monkeypatch.setattr(kind, "__call__", lambda self, text: calls.append(text) or tokenise(self, text))
    assert completion(ask(prompt=prompt), served)["prompt"] == (prompt or "<|endoftext|>")
    assert calls == [prompt]


def test_parts_of_a_message_are_one_text(served: Served) -> None:
    parts = [{"type": "text", "text": "def"}, {"type": "text", "text": "main"}]
    assert chat(say(parts), served)["messages"] == [{"role": "user", "content": "def main"}]


def test_an_answer_can_be_sent_back_as_it_came(served: Served) -> None:
    empty = {"refusal": None, "annotations": [], "audio": None, "function_call": None, "tool_calls": None}
    answer = {"role": "assistant", "content": "b"}
    assert chat({"messages": [answer | empty]}, served)["messages"] == [answer]


def test_a_chats_room_is_what_its_template_leaves(served: Served) -> None:
    shown = "user: def main\nassistant:"
    used = len(served.tokenizer(shown)["input_ids"])
    request = chat(say("def main", max_completion_tokens=CONTEXT - used, max_tokens=1), served)
    assert settings(request)["max_new_tokens"] == CONTEXT - used
    with pytest.raises(MoEPPError, match=rf"^max_tokens={CONTEXT} exceeds the {CONTEXT - used} tokens left after the "):
        chat(say("def main", max_tokens=CONTEXT), served)


def test_seed_and_stream_are_passed_on(served: Served) -> None:
    assert completion(ask(seed=3, stream=True), served).items() >= {"seed": 3, "stream": True}.items()


def test_another_model_does_not_exist(served: Served) -> None:
    assert completion(ask(model="tiny"), served) == completion(ask(), served)
    for model in ("gpt2", "../tiny", 3):
        with pytest.raises(NoSuchModel, match=r"is not served here; use 'tiny', or leave model out$"):
            completion(ask(model=model), served)


USER = {"role": "user", "content": "a"}
REFUSED: list[tuple[Any, str]] = [
    ([], r"^the body must be a JSON object, not \[\]$"),
    ({}, r"^prompt=None must be a string; send one request for each prompt$"),
    (ask(prompt=["a", "b"]), r"^prompt=\['a', 'b'\] must be a string"),
    (ask(prompt="a" * 300), r"^the prompt has \d+ tokens and the model a context of 64, in which at least one must be"),
    (ask(prompt="\ud800"), r"^the text is no valid Unicode at character 0; "),
    (ask(max_tokens=0), r"^max_tokens=0 must be an integer >= 1$"),
    (ask(max_tokens=True), r"^max_tokens=True must be an integer >= 1$"),
    (ask(max_tokens=64), r"^max_tokens=64 exceeds the \d+ tokens left after the prompt; lower it$"),
    (ask(max_tokens="7"), r"^max_tokens='7' must be an integer >= 1$"),
    (ask(temperature=-1), r"^temperature=-1 must be a number in \[0\.001, 1000\]$"),
    (ask(temperature="hot"), r"^temperature='hot' must be a number in \[0\.001, 1000\]$"),
    (ask(temperature=float("nan")), r"^temperature=nan must be a number in \[0\.001, 1000\]$"),
    (ask(temperature=False), r"^temperature=False must be a number in \[0\.001, 1000\]$"),
    (ask(temperature=1e-40), r"^temperature=1e-40 must be a number in \[0\.001, 1000\]$"),
    (ask(temperature=2**2000), r"^temperature=.* must be a number in "),
    (ask(repetition_penalty=1e-40), r"^repetition_penalty=1e-40 must be a number in \[0\.001, 1000\], where 1 is "),
    (ask(top_p=1.5), r"^top_p=1\.5 must be a number in \(0, 1\]$"),
    (ask(temperature="x" * 10**6), r"^temperature=.x+… must be"),
    (ask(top_k=-1), r"^top_k=-1 must be an integer >= 0"),
    (ask(seed=2**64), r"^seed=\d+ must be an integer >= 0 and below 2\*\*63$"),
    (ask(stop=["a"] * 5), r"^stop=.* must be a string or a list of up to 4"),
    (ask(stop=[""]), r"^stop=\[''\] must be a string"),
    (ask(stop="a" * 65), r"^stop='a+… must be .* each of 1 to 64 characters$"),
    (ask(stop=3), r"^stop=3 must be a string"),
    (ask(logit_bias={"x": 1}), r"^logit_bias: 'x' is no token id; they go from 0 to \d+$"),
    (ask(logit_bias={"99999": 1}), r"^logit_bias: '99999' is no token id"),
    (ask(logit_bias={"9" * 5000: 1}), r"^logit_bias: '9+… is no token id"),
    (ask(logit_bias={"1": 2**2000}), r"^logit_bias: \d+… for token 1 must be a number in "),
    (ask(logit_bias={"1": "a"}), r"^logit_bias: 'a' for token 1 must be a number in \[-100, 100\]$"),
    (ask(logit_bias=[1]), r"^logit_bias=\[1\] must be an object from token ids to numbers$"),
    (ask(stream="yes"), r"^stream='yes' must be true or false$"),
    (ask(temprature=1), r"^'temprature' is not a field of this request; did you mean 'temperature'\?$"),
    (ask(generation_config="{}"), r"^'generation_config' is not a field of this request; "),
    (ask(messages=[]), r"^'messages' is not a field of this request; "),
    (ask(n=2), r"^n=2 is not supported; leave n out$"),
    (ask(echo=True), r"^echo=True is not supported; leave echo out$"),
    (ask(suffix="x"), r"^suffix='x' is not supported; leave suffix out$"),
    (ask(presence_penalty=0.5), r"^presence_penalty=0\.5 is not supported; "),
    ({"messages": []}, r"^messages=\[\] must be a list of at least one message$"),
    ({"messages": "hello"}, r"^messages='hello' must be a list"),
    ({"messages": ["hello"]}, r"^messages\[0\]='hello' must be an object with role and content$"),
    ({"messages": [{"role": "me", "content": "a"}]}, r"^messages\[0\]\.role='me' must be one of system, "),
    ({"messages": [{"role": "user"}]}, r"^messages\[0\]\.content must be a string or a list of text parts"),
    (say("a", [{"type": "image_url", "image_url": {"url": "x"}}]), r"^messages\[1\]\.content must be a string or a "),
    (say([{"type": "text", "text": "a", "cache_control": {}}]), r"^messages\[0\]\.content must be a string or a list"),
    ({"messages": [USER | {"name": "me"}]}, r"^messages\[0\]: field 'name' is not supported, here 'me'; leave it out$"),
    ({"messages": [USER | {"tool_call_id": "x"}]}, r"^messages\[0\]: field 'tool_call_id' is not supported, here 'x'"),
    ({"messages": [USER, USER | {"x" * 999: "y" * 999}]}, r"^messages\[1\]: field 'x+… is not supported, here 'y+…; "),
    ({"messages": [USER | {"tool_calls": [{}]}]}, r"^messages\[0\]\.content must be a string or a list of text parts"),
    (say("\ud800"), r"^the text is no valid Unicode"),
    (say("a" * 300), r"^the prompt has \d+ tokens"),
    (say("a", tools=[{"type": "function"}]), r"^tools=.* is not supported; leave tools out$"),
    (say("a", response_format={"type": "json_object"}), r"^response_format=.* is not supported"),
]


@pytest.mark.parametrize(("body", "message"), REFUSED, ids=[message[1:40] for _, message in REFUSED])
def test_what_cannot_be_answered_is_refused(body: Any, message: str, served: Served) -> None:
    translate = chat if isinstance(body, dict) and "prompt" not in body and body else completion
    with pytest.raises(MoEPPError, match=message) as caught:
        translate(body, served)
    assert len(str(caught.value)) < 300


def test_a_template_that_refuses_the_roles_is_a_refusal(served: Served) -> None:
    tokenizer = load_tokenizer(served.tokenizer.name_or_path)
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    strict = Served("tiny", tokenizer, CONTEXT, served.generation)
    with pytest.raises(MoEPPError, match=r"^messages do not fit the model's chat template: roles must alternate; "):
        chat(say("a", "b"), strict)
