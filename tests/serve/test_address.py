"""Addresses: which are public, and that nobody is let in early or in another's place."""

import socket

import pytest

from moepp.errors import ConfigError
from moepp.serve.server import bind, is_loopback, run


async def never(scope: object, receive: object, send: object) -> None:
    """An application that must not be asked."""
    raise AssertionError


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
    with bind("127.0.0.1", 0, public=False) as bound, bind("127.0.0.1", bound.getsockname()[1], public=False) as other:
        other.listen()
        with pytest.raises(ConfigError, match=r"^the port was taken in the meantime: Address already in use; choose "):
            run(never, bound, drain=0, ready=lambda: None)  # pyright: ignore[reportArgumentType]


def test_nobody_can_connect_before_the_model_is_there() -> None:
    with bind("127.0.0.1", 0, public=False) as bound, pytest.raises(ConnectionRefusedError):
        socket.create_connection(bound.getsockname(), timeout=5)
