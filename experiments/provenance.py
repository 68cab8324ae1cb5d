"""Where numbers come from: machine, versions, command, and the commit of this folder's files."""

import hashlib
import subprocess
from functools import lru_cache
from typing import Any

from moepp.bench import facts

from .catalogue import NAMES
from .scales import HERE


def provenance() -> dict[str, Any]:
    """What :func:`moepp.bench.facts` says, with the commit where it is known."""
    return facts() | {"commit": commit()}


@lru_cache
def commit() -> str | None:
    """Of the files that this process runs, with ``+`` where code or recipes were changed since; None outside of git."""
    found = _git("rev-parse", "--short=12", "HEAD")
    changed = found and _git("status", "--porcelain", "--", ":/*.py", ":/*.yaml")
    return f"{found}+" if changed else found


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=HERE, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip() or None


_AFTERWARDS = ("__main__.py", "catalogue.py", "entry.py", "reproduction.py", "show.py")
"""What no result depends on."""


@lru_cache
def code_hash(name: str) -> str:
    """Of this folder's programs but the other experiments': what the experiment measures may have changed with them."""
    skipped = {f"{other}.py" for other in NAMES if other != name}.union(_AFTERWARDS)
    content = hashlib.sha256()
    for path in sorted(HERE.glob("*.py")):
        if path.name not in skipped:
            content.update(path.read_bytes())
    return content.hexdigest()[:16]
