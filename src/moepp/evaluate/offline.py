"""Without a connection, data that is not cached should be missed at once, not after the libraries' retries."""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

SECONDS = 5.0


@contextmanager
def hub_only_if_reachable() -> Iterator[None]:
    """While the block runs, the Hugging Face libraries use their caches alone if the hub does not answer.

    They retry for 23 seconds for each data set otherwise. They read their own switches at any time, but the environment
    variable behind them only when they are imported.
    """
    import datasets.config
    import huggingface_hub.constants

    hub: Any = huggingface_hub.constants
    if hub.HF_HUB_OFFLINE or reachable(hub.ENDPOINT):
        yield
        return
    switches: tuple[Any, ...] = (hub, datasets.config)
    before = [switch.HF_HUB_OFFLINE for switch in switches]
    try:
        for switch in switches:
            switch.HF_HUB_OFFLINE = True
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.HF_HUB_OFFLINE = value


def reachable(url: str) -> bool:
    """Whether anything answers there, if only with an error."""
    try:
        urlopen(Request(url, method="HEAD"), timeout=SECONDS).close()
    except HTTPError:
        return True
    except URLError as error:
        return isinstance(error.reason, ssl.SSLError)
    except (OSError, HTTPException):
        return False
    return True
