"""Hashes that decide or identify: the same on every machine and in every run."""

import hashlib
from collections.abc import Iterable


def unit_hash(text: str, salt: str = "") -> float:
    """A number in [0, 1) that depends on the text and the salt only."""
    digest = hashlib.sha256(f"{salt}:{text}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8]) / 2**64


def digest(parts: Iterable[object]) -> str:
    """The sha256, in hexadecimal, of ``str(part)`` of every part; where one part ends counts."""
    state = hashlib.sha256()
    for part in parts:
        data = str(part).encode("utf-8", "surrogatepass")
        state.update(f"{len(data)}:".encode())
        state.update(data)
    return state.hexdigest()
