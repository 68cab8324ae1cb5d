"""``moepp serve`` before it serves: what it refuses, in one line. The rest is in tests/serve."""

import re
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from moepp import cli
from moepp.errors import ConfigError
from moepp.serve.server import bind, is_loopback, run


def serve(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int | None:
    monkeypatch.setattr(sys, "argv", ["moepp", "serve", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as exit_:
        return exit_.code  # pyright: ignore[reportReturnType]
    return None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], r"--host='0\.0\.0\.0' lets other machines use the model, without password or encrypti"),
        (["--host", "::"], r"--host='::' lets other machines use the model, "),
        (["--host", "example.org"], r"--host='example\.org' lets other machines use the model, .*; add --public if "),
        (["--host", "no.such.invalid", "--public"], r"--host='no\.such\.invalid' --port=8000 cannot be had: .*--host"),
        (["--port", "70000"], r"--port=70000 must be in \[0, 65535\], where 0 takes a free one"),
        (["--drain", "-1"], r"--drain=-1 must be at least 0 seconds"),
        (["--port", "0"], r"model folder '\S+nowhere' does not exist; check the path"),
        (
            ["--port", "{used}"],
            r"--host='127\.0\.0\.1' --port=\d+ cannot be had: Address already in use; choose another",
        ),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as used:
        filled = [argument.format(used=used.getsockname()[1]) for argument in arguments]
        assert serve(monkeypatch, tmp_path / "nowhere", *filled) == 2
    err = capsys.readouterr().err
    assert re.match(rf"error: {message}", err), err
    assert err.count("\n") == 1


def test_a_missing_web_server_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    monkeypatch.setattr("moepp.commands.serve.is_serve_available", lambda: False)
    assert serve(monkeypatch, tmp_path) == 2
    expected = "error: moepp serve needs fastapi, uvicorn and openai; pip install 'moepp[serve]'\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_only_this_machine_reaches_a_loopback_address(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "192.168.0.1", "localhost.example.org", ""])
def test_other_addresses_are_public(host: str) -> None:
    assert not is_loopback(host)


def test_a_public_address_is_bound_when_that_is_meant() -> None:
    with bind("0.0.0.0", 0, public=True) as bound:
        assert bound.getsockname()[0] == "0.0.0.0"
        assert bound.getsockname()[1] > 0


def test_a_port_that_is_taken_while_the_model_is_loaded_is_an_error() -> None:
    async def app(*_: object) -> None:
        raise AssertionError

    with bind("127.0.0.1", 0, public=False) as bound, bind("127.0.0.1", bound.getsockname()[1], public=False) as other:
        other.listen()
        with pytest.raises(ConfigError, match=r"^the port was taken in the meantime: Address already in use; choose "):
            run(app, bound, drain=0, ready=lambda: None)  # pyright: ignore[reportArgumentType]


def test_nobody_can_connect_before_the_model_is_there() -> None:
    with bind("127.0.0.1", 0, public=False) as bound, pytest.raises(ConnectionRefusedError):
        socket.create_connection(bound.getsockname(), timeout=5)
