"""The errors that moepp raises for a user's mistake; every one reads as one line: field, value, rule, remedy."""

import difflib
from collections.abc import Iterable


class MoEPPError(Exception):
    """Base of everything a user can cause. Commands print it as one line and exit with code 2."""

    said_by: int | None = None
    """In a job of several processes that all raise this error, the rank that prints it; None: each prints its own."""


class ConfigError(MoEPPError, ValueError):
    """A field has a value that cannot work."""


class BackendUnavailable(MoEPPError, RuntimeError):
    """A backend was named and cannot run here; the message says why."""


class ConversionError(MoEPPError, ValueError):
    """A checkpoint cannot be mapped onto the model."""


class DataError(MoEPPError, ValueError):
    """Text, a data set, a tokenizer or a checkpoint folder cannot be used."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """The remedy for a misspelt name: ``did you mean 'tau'?``, or the list of what exists."""
    names = list(valid)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(sorted(names))}"


def first_line(error: BaseException) -> str:
    """What went wrong, without the advice that follows it."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
