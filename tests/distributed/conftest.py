import socket

import pytest


@pytest.fixture
def port() -> int:
    """One on which nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
