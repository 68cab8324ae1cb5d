"""``moepp serve``."""

import json
import os
import shlex
import sys
from pathlib import Path

from rich.console import Console
from transformers.utils import logging
from transformers.utils.import_utils import is_serve_available

from ..errors import BackendUnavailable, ConfigError
from .generate import open_saved


def run_serve(
    path: Path,
    *,
    name: str | None,
    host: str,
    port: int,
    public: bool,
    drain: int,
    dtype: str,
    device: str,
    pack: bool,
) -> None:
    """Serves a model until SIGTERM or Ctrl-C.

    Raises:
        ConfigError, DataError: the address, the folder or an option cannot be used.
        BackendUnavailable: the web server is not installed.
    """
    if not is_serve_available():
        raise BackendUnavailable("moepp serve needs fastapi, uvicorn and openai; pip install 'moepp[serve]'")
    from ..serve.guard import LOCAL
    from ..serve.server import bind, build_app, is_loopback, run

    if drain < 0:
        raise ConfigError(f"--drain={drain} must be at least 0 seconds")
    console = Console(stderr=True)
    logging.disable_progress_bar()
    with bind(host, port, public=public) as bound:  # before the slow part: a port in use is said at once
        model, tokenizer = open_saved(path, dtype=dtype, device=device, pack=pack)
        logging.set_verbosity_error()  # transformers' server warns of every request
        if not tokenizer.chat_template:
            console.print("the tokenizer has no chat template; chats get a plain one, 'role: text'", highlight=False)
        if not is_loopback(bound.getsockname()[0]):
            console.print(f"[bold yellow]warning:[/] anyone who can reach {host} can use the model, unencrypted")
        served = name or path.resolve().name
        address = f"[{host}]" if ":" in host else host
        app = build_app(served, model, tokenizer, hosts=None if public else LOCAL | {address.lower()})
        url = f"http://{address}:{bound.getsockname()[1]}"

        def ready() -> None:
            example = json.dumps({"model": served, "prompt": "def main(", "max_tokens": 40})
            print(f"serving {served} at {url}/v1 (Ctrl-C finishes running answers and stops)")
            print(shlex.join(["curl", f"{url}/v1/completions", "-H", "Content-Type: application/json", "-d", example]))
            sys.stdout.flush()

        run(app, bound, drain=drain, ready=ready)
        print("stopped")
    sys.stdout.flush()
    sys.stderr.flush()
    # The thread that generates may still be at an answer that was cut off, or whose client has gone. It is within
    # native code, which aborts when Python is taken down under it.
    os._exit(0)
