"""``moepp serve`` in a process of its own, asked by OpenAI's client; and every example of docs/serving.md."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from openai import OpenAI

from moepp.data import load_tokenizer
from moepp.model import load_model

from ..saved import save_tiny

DOCS = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
PROMPT = "def main("


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("serve") / "tiny")


class Server:
    """A running server and what it printed when it was ready."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "moepp", "serve", str(folder), "--port", "0", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert self.process.stdout is not None
        self.ready, self.example = self.process.stdout.readline(), self.process.stdout.readline()
        self.url = re.search(r" at (http://127\.0\.0\.1:\d+)/v1 ", self.ready)[1]  # pyright: ignore[reportOptionalSubscript]
        self.client = OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def ended(self) -> str:
        """Waits for a good end; returns what was on standard error."""
        assert self.process.wait(timeout=60) == 0
        out, err = self.process.communicate()
        assert out == "stopped\n"
        assert "Traceback" not in err
        return err


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    """Ended by Ctrl-C while it works on an answer, for which it has no time."""
    server = Server(folder, "--drain", "0")
    yield server
    long = {"prompt": PROMPT, "max_tokens": 900, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=long) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("data: ")
        server.process.send_signal(signal.SIGINT)
        err = server.ended()
        with pytest.raises(httpx.TransportError):
            list(lines)
    assert "no chat template" in err


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[int, str]:
    """The likeliest continuation of the prompt by number of tokens, from the model itself."""
    model, tokenizer = load_model(folder), load_tokenizer(str(folder))
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    new = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=48)[0, ids.shape[1] :]  # pyright: ignore
    return {count: tokenizer.decode(new[:count], skip_special_tokens=True) for count in range(1, 49)}


def streamed(client: OpenAI, count: int) -> tuple[str, Any]:
    """The text of a streamed completion and its last event."""
    chunks = list(client.completions.create(model="tiny", prompt=PROMPT, max_tokens=count, stream=True))
    return "".join(chunk.choices[0].text for chunk in chunks), chunks[-1]


def send(server: Server, command: str) -> httpx.Response:
    """What ``curl`` would send."""
    program, url, *options = shlex.split(command)
    assert program == "curl"
    given = dict(zip(options[::2], options[1::2], strict=True))
    header = dict([given.pop("-H").split(": ")])
    body = given.pop("-d")
    assert not given
    return httpx.post(url.replace("http://127.0.0.1:8000", server.url), content=body, headers=header)


def test_the_model_is_listed_by_its_folders_name(server: Server) -> None:
    assert server.ready.startswith("serving tiny at ")
    assert [model.id for model in server.client.models.list()] == ["tiny"]
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}


def test_another_sites_name_for_this_machine_is_refused(server: Server) -> None:
    for host, status in (("example.org", 403), ("localhost", 200)):
        assert httpx.get(f"{server.url}/v1/models", headers={"host": host}).status_code == status


def test_a_completion_is_the_models_own(server: Server, expected: dict[int, str]) -> None:
    answer = server.client.completions.create(model="tiny", prompt=PROMPT, max_tokens=12)
    assert answer.choices[0].text == expected[12]
    assert answer.choices[0].finish_reason == "length"
    assert answer.model == "tiny"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == 12 + answer.usage.prompt_tokens


def test_a_streamed_completion_is_the_same_text_and_ends_with_its_usage(
    server: Server, expected: dict[int, str]
) -> None:
    text, last = streamed(server.client, 12)
    # What a stream holds back of an unfinished character, it never shows.
    assert text == expected[12][: len(text)]
    assert len(text) > len(expected[12]) // 2
    assert (last.choices[0].finish_reason, last.usage.completion_tokens) == ("length", 12)


def test_a_chat_is_answered_at_once_and_streamed(server: Server) -> None:
    ask: Any = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 12}
    whole = server.client.chat.completions.create(**ask)
    chunks = list(server.client.chat.completions.create(**ask, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    content = whole.choices[0].message.content
    assert content
    assert content.startswith(text)
    assert chunks[-1].usage == whole.usage


def test_sampling_is_the_requests_own(server: Server, expected: dict[int, str]) -> None:
    def ask(**settings: Any) -> str:
        return server.client.completions.create(model="tiny", prompt=PROMPT, max_tokens=12, **settings).choices[0].text

    assert ask(temperature=0) == ask(temperature=1.5, extra_body={"top_k": 1}) == expected[12]
    drawn = [ask(temperature=1.5, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_stops_and_biases_are_obeyed(server: Server, expected: dict[int, str]) -> None:
    stop = next(character for character in expected[48] if character.isascii() and character.isalnum())
    stopped = server.client.completions.create(model="tiny", prompt=PROMPT, max_tokens=48, stop=[stop]).choices[0]
    assert stopped.finish_reason == "stop"
    assert stopped.text.endswith(stop)
    assert expected[48].startswith(stopped.text)
    banned = {str(token): -100 for token in range(100)}
    biased = server.client.completions.create(model="tiny", prompt=PROMPT, max_tokens=12, logit_bias=banned).choices[0]
    assert biased.text != expected[12]


def test_thirty_two_streams_at_once_get_their_whole_answers(server: Server, expected: dict[int, str]) -> None:
    counts = range(8, 40)
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda count: streamed(server.client, count), counts))
    for count, (text, last) in zip(counts, answers, strict=True):
        assert last.usage.completion_tokens == count
        assert text
        assert text == expected[count][: len(text)]


def test_the_server_goes_on_when_clients_leave(server: Server, expected: dict[int, str]) -> None:
    """Some while they are answered, some while they wait."""
    body = {"prompt": PROMPT, "max_tokens": 900, "stream": True}
    url = f"{server.url}/v1/completions"
    with httpx.stream("POST", url, json=body) as running, httpx.stream("POST", url, json=body) as waiting:
        assert running.is_success
        assert waiting.is_success
    assert server.client.completions.create(model="tiny", prompt=PROMPT, max_tokens=12).choices[0].text == expected[12]


@pytest.mark.parametrize(
    ("path", "content", "status", "message"),
    [
        ("/v1/completions", b"{", 400, "the body is not JSON: "),
        ("/v1/completions", b'{"prompt": 7}', 400, "prompt=7 must be a string"),
        ("/v1/completions", b'{"prompt": "a", "temperature": "hot"}', 400, "temperature='hot' must be a number in "),
        ("/v1/completions", b'{"prompt": "' + b"a" * 5000 + b'"}', 400, "the prompt has "),
        ("/v1/completions", b'{"prompt": "a", "max_tokens": 5000}', 400, "max_tokens=5000 exceeds the "),
        ("/v1/completions", b'{"prompt": "a", "model": "gpt2"}', 404, "model='gpt2' is not served here; use 'tiny'"),
        ("/v1/completions", b" " * (8 << 20), 413, "the body has more than 1048576 bytes"),
        ("/v1/chat/completions", b'{"messages": [{}]}', 400, "messages[0].role=None must be one of "),
        ("/load_model", b'{"model": "gpt2"}', 404, "path '/load_model' does not exist"),
        ("/reset", b"{}", 404, "path '/reset' does not exist"),
    ],
)
def test_a_mistake_is_answered_and_the_server_goes_on(
    path: str, content: bytes, status: int, message: str, server: Server
) -> None:
    answer = httpx.post(server.url + path, content=content, headers={"content-type": "application/json"})
    assert answer.status_code == status
    assert answer.json()["error"]["message"].startswith(message)
    assert httpx.get(f"{server.url}/health").status_code == 200


def test_connections_without_end_are_refused(server: Server) -> None:
    """512 that say nothing; when they have gone, clients are answered again."""
    url = httpx.URL(server.url)
    with ExitStack() as many:
        for _ in range(512):
            many.enter_context(socket.create_connection((url.host, url.port or 0)))
        assert httpx.get(f"{server.url}/health").status_code == 503
    while httpx.get(f"{server.url}/health").status_code == 503:  # until the server has noticed
        pass
    assert httpx.get(f"{server.url}/health").is_success


def test_the_printed_example_and_the_documented_ones_work(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    (documented,) = re.findall(r"^curl .*", DOCS, flags=re.MULTILINE)
    for command in (server.example, documented):
        assert send(server, command).json()["usage"]["completion_tokens"] == 40
    (snippet,) = re.findall(r"```python\n(.*?)```", DOCS, flags=re.DOTALL)
    exec(snippet.replace("http://127.0.0.1:8000", server.url), {})
    assert " 40\n" in capsys.readouterr().out


def test_sigterm_finishes_what_was_asked_and_takes_nothing_more(folder: Path) -> None:
    server = Server(folder)
    accepted = threading.Semaphore(0)

    def events(count: int) -> list[str]:
        body = {"prompt": PROMPT, "max_tokens": count, "stream": True}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as answer:
            accepted.release()
            return [line for line in answer.iter_lines() if line]

    with ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(events, 400) for _ in range(3)]
        for _ in answers:
            accepted.acquire()
        server.process.send_signal(signal.SIGTERM)
        while accepts(server):
            pass
        assert not all(answer.done() for answer in answers)
        for answer in answers:
            *_, last, done = answer.result()
            assert done == "data: [DONE]"
            assert json.loads(last.removeprefix("data: "))["usage"]["completion_tokens"] == 400
    server.ended()


def accepts(server: Server) -> bool:
    try:
        return httpx.get(f"{server.url}/health", timeout=60).is_success
    except httpx.TransportError:
        return False
