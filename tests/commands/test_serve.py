"""``moepp serve`` before it serves: what it refuses, in one line. The rest is in tests/serve."""

import re
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from moepp import cli

from ..saved import save_tiny


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
        (["--host", "no.such.invalid"], r"--host='no\.such\.invalid' --port=8000 cannot be had: .*--host"),
        (["--host", "a" * 64], r"--host='a+' is no name of a host: .*; choose another --host"),
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


def test_a_public_address_is_warned_of_and_answers_to_any_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    hosts: list[Any] = []
    monkeypatch.setattr("moepp.serve.server.run", lambda app, *_, **__: hosts.append(app.hosts))
    monkeypatch.setattr("os._exit", lambda code: None)
    folder = save_tiny(tmp_path / "tiny")
    assert serve(monkeypatch, folder, "--host", "0.0.0.0", "--port", "0", "--public") == 0
    assert "warning: anyone who can reach 0.0.0.0 can use the model, unencrypted" in capsys.readouterr().err
    serve(monkeypatch, folder, "--port", "0")
    assert "anyone" not in capsys.readouterr().err
    serve(monkeypatch, folder, "--host", "127.8.8.8", "--port", "0")
    local = {"localhost", "127.0.0.1", "[::1]"}
    assert hosts == [None, local, local | {"127.8.8.8"}]  # what clients may call it
