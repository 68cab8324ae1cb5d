"""transformers' OpenAI-compatible server, with one model in it that was loaded already."""

import asyncio
import inspect
import ipaddress
import signal
import socket
from collections.abc import Callable, Set
from typing import Any

import uvicorn
from transformers import PreTrainedTokenizerBase
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.completion import CompletionHandler
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.server import build_server
from transformers.cli.serving.utils import GenerationState

from ..errors import ConfigError
from ..model import MoEPPForCausalLM
from ..model.sampling import CHAT_TEMPLATE
from .guard import LOCAL, Guard
from .requests import Served


class OneModel(ModelManager):
    """Knows one model, by one name; loads and unloads nothing."""

    def __init__(self, name: str, model: MoEPPForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(device=str(model.device))
        self.force_model = name
        self._pair = (model, tokenizer)

    def load_model_and_processor(self, *args: Any, **kwargs: Any) -> Any:
        """The model and its tokenizer."""
        return self._pair

    @staticmethod
    def process_model_name(model_id: str) -> str:
        """The name as it is: there is no revision."""
        return model_id

    def get_gen_models(self, cache_dir: str | None = None) -> list[dict]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What ``/v1/models`` lists."""
        return [{"id": self.force_model, "object": "model", "created": 0, "owned_by": "local"}]


def build_app(
    name: str, model: MoEPPForCausalLM, tokenizer: PreTrainedTokenizerBase, *, hosts: Set[str] | None = LOCAL
) -> Guard:
    """The ASGI application: transformers' own behind :class:`Guard`, which ``hosts`` is for.

    A tokenizer without a chat template is given a plain one.
    """
    tokenizer.chat_template = tokenizer.chat_template or CHAT_TEMPLATE
    tokenizer("")  # forgets truncation and padding that were saved with it, which it cannot while a thread uses it
    manager, state = OneModel(name, model, tokenizer), GenerationState()
    handlers: dict[str, Any] = {
        "chat_handler": ChatCompletionHandler(manager, state),
        "completion_handler": CompletionHandler(manager, state),
    }
    # No handlers for paths that the guard hides; which there are differs between versions of transformers.
    names = [name for name in inspect.signature(build_server).parameters if name.endswith("_handler")]
    shown: dict[str, Any] = {name: handlers.get(name) for name in names}
    app = build_server(manager, **shown, generation_state=state)
    served = Served(name, tokenizer, model.config.max_position_embeddings, model.generation_config)
    return Guard(app, served, hosts=hosts)


def bind(host: str, port: int, *, public: bool) -> socket.socket:
    """A socket that nobody can connect to yet.

    Raises:
        ConfigError: the address is reachable from other machines and ``public`` is not set, or it cannot be had.
    """
    if not 0 <= port < 65536:
        raise ConfigError(f"--port={port} must be in [0, 65535], where 0 takes a free one")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        if not public and not is_loopback(str(address[0])):
            raise ConfigError(
                f"--host={host!r} lets other machines use the model, without password or encryption; "
                "add --public if that is meant"
            )
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except OSError:
            bound.close()
            raise
    except UnicodeError as error:
        raise ConfigError(f"--host={host!r} is no name of a host: {error}; choose another --host") from error
    except OSError as error:
        remedy = "choose another --port" if not isinstance(error, socket.gaierror) else "choose another --host"
        raise ConfigError(f"--host={host!r} --port={port} cannot be had: {error.strerror}; {remedy}") from error
    return bound


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach an address, a numeric one: names lead where the system's resolver says."""
    return ipaddress.ip_address(address).is_loopback


def run(app: Guard, bound: socket.socket, *, drain: int, ready: Callable[[], None]) -> None:
    """Serves until SIGTERM or SIGINT; then takes no new connections and returns when running answers are complete.

    Args:
        drain: seconds after which answers that still run are cut off. A second SIGINT does that at once.
        ready: called when connections are accepted.

    Raises:
        ConfigError: another process has come to listen at the same address.
    """

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            try:
                await super().startup(sockets)
            except OSError as error:  # two may bind, and one of them listen
                raise ConfigError(f"the port was taken in the meantime: {error.strerror}; choose another") from error
            ready()

    config = uvicorn.Config(
        app,
        ws="none",
        lifespan="off",  # transformers' application would unload the model, with which the process ends anyway
        log_level="warning",
        timeout_graceful_shutdown=drain,
        # Each connection may send a large body. Twice: when as many wait as may, there is room for those that are told
        # so, for /health and for idle clients; and it is well under the 1024 open files that systems usually allow.
        limit_concurrency=2 * app.max_waiting,
        server_header=False,
    )
    # uvicorn raises the signal again when it has ended, for handlers that were there before: they would kill us.
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: None) for number in signals]
    try:
        asyncio.run(Server(config).serve(sockets=[bound]))
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
