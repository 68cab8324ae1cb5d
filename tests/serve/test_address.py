"""Addresses: which are public, and that nobody is let in early or in another's place."""

import socket

import pytest

from moepp.errors import ConfigError
from moepp.serve.guard import Guard
from moepp.serve.server import bind, is_loopback, run


async def never(scope: object, receive: object, send: object) -> None:
    """An application that must not be asked."""
    raise AssertionError


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.8.8", "::1"])
def test_only_this_machine_reaches_a_loopback_address(address: str) -> None:
    assert is_loopback(address)


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "10.0.0.1", "192.168.0.1", "fe80::1%eth0"])
def test_other_addresses_are_public(address: str) -> None:
    assert not is_loopback(address)


@pytest.mark.parametrize("name", ["localhost", "alias"])
def test_a_name_is_as_public_as_the_address_it_leads_to(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def leads_to(address: str) -> None:
        found = (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0))
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [found])

    leads_to("0.0.0.0")
    with pytest.raises(ConfigError, match=rf"^--host='{name}' lets other machines use the model, .*; add --public if "):
        bind(name, 0, public=False)
    leads_to("127.0.0.1")
    with bind(name, 0, public=False) as bound:
        assert bound.getsockname()[0] == "127.0.0.1"


def test_a_public_address_is_bound_when_that_is_meant() -> None:
    with bind("0.0.0.0", 0, public=True) as bound:
        assert bound.getsockname()[0] == "0.0.0.0"
        assert bound.getsockname()[1] > 0


def test_a_port_that_is_taken_while_the_model_is_loaded_is_an_error() -> None:
    with bind("127.0.0.1", 0, public=False) as bound, bind("127.0.0.1", bound.getsockname()[1], public=False) as other:
        other.listen()
        with pytest.raises(ConfigError, match=r"^the port was taken in the meantime: Address already in use; choose "):
            run(Guard(never, None), bound, drain=0, ready=lambda: None)  # pyright: ignore[reportArgumentType]


def test_nobody_can_connect_before_the_model_is_there() -> None:
    with bind("127.0.0.1", 0, public=False) as bound, pytest.raises(ConnectionRefusedError):
        socket.create_connection(bound.getsockname(), timeout=5)
