"""What stands before transformers' application: which paths exist, how large a body may be, and what it must say.

Everything that a client can get wrong is answered here, as OpenAI answers it: a 4xx status and
``{"error": {"message", "type", "param", "code"}}``; so is what fails within, with 500. transformers' application also
loads other models, unloads this one and reads audio; those paths do not exist here.
"""

import asyncio
import json
import logging
import re
from collections.abc import Awaitable, Callable, MutableMapping, Set
from typing import Any

from ..errors import MoEPPError
from ..model.sampling import shown
from .requests import NoSuchModel, Served, chat, completion

_log = logging.getLogger("moepp.serve")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

MAX_BODY = 1 << 20
"""Bytes; about a million characters, more than any context here holds."""
LOCAL = frozenset({"localhost", "127.0.0.1", "[::1]"})
"""What a client on this machine calls it."""
_TRANSLATE = {"/v1/completions": completion, "/v1/chat/completions": chat}
_READ = ("/v1/models", "/health")
_METHOD = dict.fromkeys(_TRANSLATE, "POST") | dict.fromkeys(_READ, "GET")


class Refused(Exception):
    """A request is answered with this status and message, and goes no further."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class Disconnected(Exception):
    """The client left before it had said what it wants."""


class Guard:
    """An ASGI application around transformers'.

    Args:
        app: transformers' application.
        served: the model behind it.
        hosts: the names that clients may call the server by, without port; None lets any through.
        max_body: bytes of a request's body.
        max_waiting: requests that are being read or answered or wait for it; more are refused with 429, unread.
    """

    def __init__(
        self,
        app: App,
        served: Served,
        *,
        hosts: Set[str] | None = LOCAL,
        max_body: int = MAX_BODY,
        max_waiting: int = 256,
    ) -> None:
        self.app = app
        self.served = served
        self.hosts = hosts
        self.max_body = max_body
        self.max_waiting = max_waiting
        self.waiting = 0

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        started = failed = False

        async def watched(message: Message) -> None:
            nonlocal started, failed
            # Starlette answers a failure in plain text before it raises it; that answer is held back.
            failed = failed or message.get("status") == 500
            if not failed:
                started = True
                await send(message)

        try:
            await self._http(scope, receive, watched)
        except Refused as refused:
            await _answer(send, refused)
        except (Disconnected, asyncio.CancelledError):  # cancelled when the server's time to end is over
            pass
        except Exception:  # of a chat template or transformers, which may be any; uvicorn would answer in plain text
            if started:
                raise
            _log.exception("%s failed", scope["path"])
            await _answer(send, Refused(500, "the server failed at this request; its log says why"))

    async def _http(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        # The owner of any name can have it lead here, and then a page from there is same-origin to a browser.
        host = re.sub(r":\d*$", "", headers.get(b"host", b"").decode("latin-1")).lower()
        if self.hosts is not None and host not in self.hosts:
            raise Refused(403, f"Host {shown(host)} is not this server; use one of {', '.join(sorted(self.hosts))}")
        path = scope["path"]
        method = _METHOD.get(path)
        if method is None:
            raise Refused(404, f"path {path!r} does not exist; there are {', '.join(_METHOD)}")
        if scope["method"] != method:
            raise Refused(405, f"method {scope['method']!r} is not for {path}; use {method}")
        if path not in _TRANSLATE:
            await self.app(scope, receive, send)
            return
        # A web page can post anything but this to another site without being asked for leave.
        if headers.get(b"content-type", b"").partition(b";")[0].strip().lower() != b"application/json":
            raise Refused(415, "the Content-Type must be application/json")
        if self.waiting >= self.max_waiting:
            raise Refused(429, f"{self.waiting} requests are being answered or wait for it; try again later")
        self.waiting += 1
        try:
            content = await _read(receive, self.max_body)
            # In a thread: a tokenizer takes a second for the largest body, and others are to be answered meanwhile.
            request = await asyncio.to_thread(self._translate, path, content)
            await self.app(scope, _replay(json.dumps(request).encode(), receive), _ended(send))
        finally:
            self.waiting -= 1

    def _translate(self, path: str, content: bytes) -> dict[str, Any]:
        try:
            body = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise Refused(400, f"the body is not JSON: {error}") from error
        try:
            return _TRANSLATE[path](body, self.served)
        except NoSuchModel as error:
            raise Refused(404, str(error), "model_not_found") from error
        except MoEPPError as error:
            raise Refused(400, str(error)) from error


async def _read(receive: Receive, most: int) -> bytes:
    """The body. One that is somewhat too large is read to its end, or its sender would not listen to the answer."""
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        part = message.get("body", b"")
        size += len(part)
        if size <= most:
            parts.append(part)
        if size > 64 * most or not message.get("more_body", False):
            break
    if size > most:
        raise Refused(413, f"the body has more than {most} bytes; shorten it")
    return b"".join(parts)


def _replay(content: bytes, receive: Receive) -> Receive:
    """What transformers' application receives: the translated body, then whatever the client does."""
    rest = [{"type": "http.request", "body": content, "more_body": False}]

    async def replayed() -> Message:
        return rest.pop() if rest else await receive()

    return replayed


def _ended(send: Send) -> Send:
    """Ends a stream with ``data: [DONE]``, which OpenAI's protocol has and transformers leaves out."""
    streams = False

    async def sent(message: Message) -> None:
        nonlocal streams
        if message["type"] == "http.response.start":
            streams = dict(message["headers"]).get(b"content-type", b"").startswith(b"text/event-stream")
        elif streams and not message.get("more_body", False):
            message = {**message, "body": message.get("body", b"") + b"data: [DONE]\n\n"}
        await send(message)

    return sent


async def _answer(send: Send, refused: Refused) -> None:
    kind = "invalid_request_error" if refused.status < 500 else "server_error"
    error = {"message": str(refused), "type": kind, "param": None, "code": refused.code}
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps({"error": error}).encode()})
