"""Recipes made of files: ``extends:`` names one or several others, relative to the file, that it is merged onto.

Keys and values are merged at every depth, the later file winning; a list replaces the list before it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError

if TYPE_CHECKING:
    from omegaconf import DictConfig

KEY = "extends"


def read_merged(path: str | Path, extended_by: Sequence[Path] = ()) -> "DictConfig":
    """One file merged onto those that it extends; ``extends`` itself is gone from the result.

    Args:
        extended_by: the files that lead here, the first one first.

    Raises:
        ConfigError: a file is missing, is no YAML of keys and values, or extends itself.
    """
    from omegaconf import DictConfig, OmegaConf
    from yaml import YAMLError

    path = Path(path)
    chain = [*extended_by, path]
    if path.resolve() in {other.resolve() for other in extended_by}:
        raise ConfigError(f"recipe {str(chain[0])!r} extends itself: {' -> '.join(map(str, chain))}; cut the circle")
    if not path.is_file():
        by = f"; {extended_by[-1]} extends it" if extended_by else ""
        raise ConfigError(f"recipe {str(path)!r} does not exist{by}; check the path")
    try:
        own = OmegaConf.load(path)
    except (YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {str(path)!r} is not YAML: {one_line(error)}") from error
    if not isinstance(own, DictConfig):
        raise ConfigError(f"recipe {str(path)!r} must hold keys and values, not a list")
    plain = OmegaConf.to_container(own)  # not own[KEY], which would resolve what is not there yet
    assert isinstance(plain, dict)
    names = _names(plain.pop(KEY, []), path)
    bases = [read_merged(path.parent / name, chain) for name in names]
    merged = OmegaConf.merge(*bases, plain)
    assert isinstance(merged, DictConfig)
    return merged


def one_line(error: Exception) -> str:
    """A YAML error, which has a drawing, on one line."""
    return " ".join(str(error).split())


def _names(value: Any, path: Path) -> list[str]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{KEY}={value!r} of {path} must be a file's name or a list of them")
    return list(names)
