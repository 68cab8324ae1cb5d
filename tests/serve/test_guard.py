"""The guard alone, around an application that says what it was shown; and a client that leaves, around the real one."""

import asyncio
import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moepp.data import load_tokenizer
from moepp.model import load_model
from moepp.serve.guard import LOCAL, Guard, Message
from moepp.serve.requests import Served
from moepp.serve.server import build_app

from ..saved import save_tiny

HOST = (b"host", b"127.0.0.1:8000")
JSON = [HOST, (b"content-type", b"application/json; charset=utf-8")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("guard"))


@pytest.fixture(scope="module")
def served(folder: Path) -> Served:
    model = load_model(folder)
    return Served("tiny", load_tokenizer(str(folder)), 1024, model.generation_config)


async def mirror(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the request's body, in two events."""
    body = (await receive())["body"]
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    await send({"type": "http.response.body", "body": b"data: " + body + b"\n\n", "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def call(
    app: Any, path: str, *parts: bytes, method: str = "POST", headers: Any = JSON, gone: bool = False
) -> tuple[int, str]:
    """One request, its body in parts; ``gone``: the client leaves before the last."""
    waiting = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    waiting.append({"type": "http.disconnect"} if gone else {"type": "http.request", "body": b""})
    status, body = 0, b""

    async def receive() -> Any:
        return waiting.pop(0)

    async def send(message: Any) -> None:
        nonlocal status, body
        status = message.get("status", status)
        body += message.get("body", b"")

    scope = {"type": "http", "path": path, "method": method, "headers": headers, "query_string": b""}
    asyncio.run(app(scope, receive, send))
    return status, body.decode()


def refusal(answer: tuple[int, str]) -> tuple[int, str, str | None]:
    status, body = answer
    error = json.loads(body)["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return status, error["message"], error["code"]


def test_the_application_is_shown_the_translated_request_and_streams_end_with_done(served: Served) -> None:
    status, body = call(Guard(mirror, served), "/v1/completions", b'{"prompt": ', b'"a", "max_tokens": 3}')
    first, last, _ = body.split("\n\n")
    assert status == 200
    assert json.loads(json.loads(first.removeprefix("data: "))["generation_config"])["max_new_tokens"] == 3
    assert last == "data: [DONE]"


@pytest.mark.parametrize("path", ["/load_model", "/reset", "/v1/responses", "/v1/audio/transcriptions", "/docs", "/"])
def test_other_paths_of_transformers_server_do_not_exist(path: str, served: Served) -> None:
    for method in ("GET", "POST"):
        status, message, _ = refusal(call(Guard(mirror, served), path, b"{}", method=method))
        assert status == 404
        assert message.startswith(f"path '{path}' does not exist; there are /v1/completions, ")


@pytest.mark.parametrize(
    ("request_", "status", "message"),
    [
        ({"method": "GET"}, 405, r"method 'GET' is not for /v1/completions; use POST"),
        ({"headers": [HOST, (b"content-type", b"text/plain")]}, 415, "the Content-Type must be application/json"),
        ({"headers": [HOST]}, 415, "the Content-Type must be application/json"),
    ],
)
def test_other_methods_and_types_are_refused(request_: dict, status: int, message: str, served: Served) -> None:
    assert refusal(call(Guard(mirror, served), "/v1/completions", b"{}", **request_))[:2] == (status, message)


@pytest.mark.parametrize(
    ("hosts", "host", "status"),
    [
        (LOCAL, b"localhost", 200),
        (LOCAL, b"LocalHost:8000", 200),
        (LOCAL, b"127.0.0.1:", 200),
        (LOCAL, b"[::1]", 200),
        (LOCAL, b"[::1]:8000", 200),
        (LOCAL | {"127.8.8.8"}, b"127.8.8.8:1", 200),
        (None, b"example.org", 200),
        (None, None, 200),
        (LOCAL, b"example.org:8000", 403),
        (LOCAL, b"localhost.example.org", 403),
        (LOCAL, b"127.0.0.1:8000.example.org", 403),
        (LOCAL, b"[::1", 403),
        (LOCAL, b"[::2]:8000", 403),
        (LOCAL, b"\xff" * 1000, 403),
        (LOCAL, b"", 403),
        (LOCAL, None, 403),
    ],
)
def test_a_web_page_cannot_call_the_server_by_a_name_of_its_own(
    hosts: Any, host: bytes | None, status: int, served: Served
) -> None:
    headers = JSON[1:] + ([] if host is None else [(b"host", host)])
    answer = call(Guard(mirror, served, hosts=hosts), "/v1/completions", b'{"prompt": "a"}', headers=headers)
    assert answer[0] == status
    if status == 403:
        assert " is not this server; use one of 127.0.0.1, [::1], localhost" in refusal(answer)[1]
        assert len(refusal(answer)[1]) < 300


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 10**5, b'{"prompt": 1' + b"0" * 5000 + b"}"])
def test_a_body_that_is_no_json_is_refused(body: bytes, served: Served) -> None:
    status, message, _ = refusal(call(Guard(mirror, served), "/v1/completions", body))
    assert status == 400
    assert message.startswith("the body is not JSON: ")


def test_another_model_is_not_found(served: Served) -> None:
    answer = call(Guard(mirror, served), "/v1/completions", b'{"model": "gpt2", "prompt": "a"}')
    assert refusal(answer)[0::2] == (404, "model_not_found")


@pytest.mark.parametrize("parts", [[b" " * 101], [b" " * 60] * 2, [b" " * 1000] * 100], ids=["one", "parts", "much"])
def test_a_large_body_is_refused(parts: list[bytes], served: Served) -> None:
    answer = call(Guard(mirror, served, max_body=100), "/v1/completions", *parts)
    assert refusal(answer)[:2] == (413, "the body has more than 100 bytes; shorten it")


@pytest.mark.parametrize("template", ["{{ 1 // 0 }}", "{{ messages[0].content + 1 }}"])
def test_a_chat_template_that_fails_is_logged_and_answered(template: str, served: Served, caplog: Any) -> None:
    tokenizer = load_tokenizer(served.tokenizer.name_or_path)
    tokenizer.chat_template = template
    guard = Guard(mirror, replace(served, tokenizer=tokenizer))
    body = b'{"messages": [{"role": "user", "content": "a"}]}'
    answer = call(guard, "/v1/chat/completions", body)
    assert refusal(answer)[:2] == (500, "the server failed at this request; its log says why")
    assert json.loads(answer[1])["error"]["type"] == "server_error"
    (record,) = caplog.records
    assert record.getMessage() == "/v1/chat/completions failed"
    assert record.exc_info[0] in (ZeroDivisionError, TypeError)
    assert guard.waiting == 0


def test_a_failure_of_transformers_is_answered_and_the_next_request_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = build_app("tiny", load_model(folder), load_tokenizer(str(folder)))
    body = b'{"prompt": "a", "max_tokens": 1}'

    def ask() -> tuple[int, str]:
        return call(app, "/v1/completions", body)

    with monkeypatch.context() as broken:
        broken.setattr("transformers.cli.serving.completion.CompletionHandler.handle_request", None)
        assert refusal(ask())[:2] == (500, "the server failed at this request; its log says why")
    assert ask()[0] == 200


def test_a_failure_within_an_answer_ends_it(served: Served) -> None:
    async def breaks(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        call(Guard(breaks, served), "/v1/completions", b'{"prompt": "a"}')


def test_a_client_that_leaves_while_it_sends_is_let_go(served: Served) -> None:
    assert call(Guard(mirror, served), "/v1/completions", b"{", gone=True) == (0, "")


def test_a_full_queue_refuses_more_without_reading_it(served: Served) -> None:
    guard = Guard(mirror, served, max_waiting=0)
    assert refusal(call(guard, "/v1/completions", gone=True))[0] == 429
    assert guard.waiting == 0


def test_others_are_answered_while_a_request_is_tokenised(served: Served) -> None:
    """The tokenizer waits until another request has been answered."""
    answered = threading.Event()

    def tokenizer(text: str) -> dict[str, list[int]]:
        assert answered.wait(5)
        return {"input_ids": [1]}

    guard = Guard(mirror, replace(served, tokenizer=tokenizer))  # pyright: ignore[reportArgumentType]

    async def both() -> Message:
        sent: list[Message] = []
        scope = {"type": "http", "path": "/v1/completions", "method": "POST", "headers": JSON}
        messages = [{"type": "http.request", "body": b'{"prompt": "a"}'}]

        async def receive() -> Message:
            return messages.pop()

        async def send(message: Message) -> None:
            sent.append(message)

        async def ignore(message: Message) -> None:
            pass

        slow = asyncio.create_task(guard(scope, receive, send))
        while guard.waiting == 0 and not slow.done():
            await asyncio.sleep(0)
        await guard({**scope, "method": "GET"}, receive, ignore)
        answered.set()
        await slow
        return sent[0]

    assert asyncio.run(both())["status"] == 200


def test_a_tokenizers_own_truncation_is_gone_before_threads_share_it(folder: Path) -> None:
    tokenizer = load_tokenizer(str(folder))
    tokenizer.backend_tokenizer.enable_truncation(8)  # pyright: ignore[reportAttributeAccessIssue]
    build_app("tiny", load_model(folder), tokenizer)
    assert tokenizer.backend_tokenizer.truncation is None  # pyright: ignore[reportAttributeAccessIssue]


def test_generating_stops_when_the_client_has_gone(folder: Path) -> None:
    """Counted in passes through the model: 900 were asked for, a few tens happen until it is noticed."""
    model = load_model(folder)
    passes = 0

    def count(*_: object) -> None:
        nonlocal passes
        passes += 1

    model.register_forward_hook(count)
    app = build_app("tiny", model, load_tokenizer(str(folder)))
    body = json.dumps({"prompt": "def", "max_tokens": 900, "stream": True}).encode()

    async def leave() -> int:
        begun = asyncio.Event()
        waiting = [{"type": "http.request", "body": body}]

        async def receive() -> Any:
            if waiting:
                return waiting.pop()
            await begun.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if b"data: " in message.get("body", b""):
                begun.set()

        scope = {"type": "http", "path": "/v1/completions", "method": "POST", "headers": JSON, "query_string": b""}
        await app(scope, receive, send)
        # The one thread that generates answers the next request when it is done with this one.
        answer = {"type": "http.request", "body": b'{"prompt": "def", "max_tokens": 1}'}
        waiting.append(answer)
        begun.clear()
        await app(scope, receive, send)
        return app.waiting

    assert asyncio.run(leave()) == 0
    assert 1 < passes < 300
