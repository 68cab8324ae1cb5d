"""``moepp analyze``: what the experts of one model or several do on the same text."""

import glob
import importlib.util
import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from transformers.utils import logging as transformers_logging

from ..analyze import RoutingTable, Summary, Text, collect, fingerprint, save_figures, save_page, summarize
from ..analyze.numbers import warning
from ..analyze.routing_table import Facts
from ..analyze.text import require_context
from ..bench import command, facts
from ..errors import ConfigError, DataError
from ..model import load_config
from ..output import readable, save_text
from .analyze_report import analysis, print_summary
from .generate import open_saved
from .options import option_name, require_at_least_one
from .texts import STDLIB, read_texts

logger = logging.getLogger("moepp.analyze")
ANALYSIS, PAGE, FIGURES = "analysis.json", "report.html", "figures"
_GENERATOR = b'<meta name="generator" content="moepp">'
_DRAWN = (".png", ".svg")
_HEAD = 1 << 12  # bytes of a page that tell whose it is
_MAX_TOKENS, _BATCH_SIZE = 50_000, 8
_CHARACTERS = 256  # that hardly any tokenizer's longest token has: more of a source is not read
_OF_A_RUN = ("text", "data", "max_tokens", "window", "batch_size", "device", "dtype")


@dataclass(frozen=True, kw_only=True)
class AnalyzeOptions:
    """What the command line said."""

    text: Path | None
    data: list[str]
    tables: list[Path]
    max_tokens: int | None
    window: int | None
    batch_size: int | None
    device: str | None
    dtype: str | None
    out: Path


def run_analyze(models: Sequence[Path], options: AnalyzeOptions) -> None:
    """Prints a summary and writes tables, numbers and the page to ``out``.

    Raises:
        ConfigError, DataError, BackendUnavailable: an option, a model or the text cannot be used, or ``out`` cannot be
            written.
    """
    _check(models, options)
    names = _names(models)
    _require_folder(options.out)
    console = Console(markup=False, emoji=False)  # names and paths are shown as they are
    transformers_logging.disable_progress_bar()
    summaries = _read(models, names, options) if options.tables else _run(models, names, options, console)
    print_summary(summaries, console)
    if (caution := warning(summaries)) is not None:
        console.print(caution, style="dim", highlight=False, soft_wrap=True)
    with console.status("drawing"):
        _write(summaries, options.out)
    _remove_others(options, names)
    console.print(f"written to {readable(options.out)}", style="dim", highlight=False, soft_wrap=True)


def _names(models: Sequence[Path]) -> list[str]:
    """What each model is called: its folder's name, with as many of those above it as tell them apart."""
    parts = [[readable(part) for part in path.resolve().parts[1:]] for path in models]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["-".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise ConfigError("MODEL: one folder is given twice, or the names cannot be told apart; give each once")


def _check(models: Sequence[Path], options: AnalyzeOptions) -> None:
    """Refuses at once what would be found out after minutes."""
    require_at_least_one(options, "max_tokens", "window", "batch_size")
    given = [option_name(name) for name in _OF_A_RUN if getattr(options, name)]
    if options.tables and given:
        raise ConfigError(f"--table stands for a run that is over; leave out {' and '.join(given)}, or --table")
    if options.tables and len(options.tables) != len(models):
        raise ConfigError(
            f"--table is given {len(options.tables)} times for {len(models)} models; give one for each, in their order"
        )
    for path in models:
        config = load_config(path)
        if options.window is not None:
            require_context(options.window, config.max_position_embeddings)


def _require_folder(out: Path) -> None:
    """Makes the folder; one that holds anything but an earlier analysis is not touched."""
    if readable(out) != str(out):  # Arrow opens no such file
        raise ConfigError(f"--out={readable(out)!r} is not UTF-8; choose another folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
        foreign = sorted(entry.name for entry in out.iterdir() if not _is_ours(entry))
        probe = out / f".{ANALYSIS}.incomplete"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(f"--out={str(out)!r} cannot be written: {error.strerror}; choose another folder") from error
    if foreign:
        raise ConfigError(f"--out={str(out)!r} is in use, it holds {foreign[0]}; choose a new folder")


def _is_ours(entry: Path) -> bool:
    """By what it holds: anyone may have a file of that name."""
    if entry.suffix == ".parquet":
        return RoutingTable.is_in(entry)
    if entry.name == FIGURES:
        drawn = entry.is_dir() and all(file.suffix in _DRAWN or file.name == ".incomplete" for file in entry.iterdir())
        return drawn and _is_ours(entry.with_name(ANALYSIS))
    try:
        if entry.name == ANALYSIS:
            content = json.loads(entry.read_text(encoding="utf-8"))
            return isinstance(content, dict) and "tables" in content
        if entry.name == PAGE:
            with entry.open("rb") as file:
                return _GENERATOR in file.read(_HEAD)
    except (OSError, ValueError):
        return False
    return entry.name.startswith(".") and entry.name.endswith(".incomplete")


def _texts(models: Sequence[Path], options: AnalyzeOptions) -> list[Text]:
    """The documents that were asked for; by default what these models' runs held out of the standard library."""
    wanted = [("--data", data) for data in options.data]
    if options.text is not None:
        wanted.insert(0, ("--text", glob.escape(str(options.text))))
    most = _CHARACTERS * (options.max_tokens or _MAX_TOKENS)
    found: list[Text] = []
    for option, data in wanted or [("--data", STDLIB)]:
        for source, documents in read_texts(data, option, models, most).items():
            name = readable(options.text.name if option == "--text" and options.text is not None else source)
            numbered = [name] if len(documents) == 1 else [f"{name} {n}" for n in range(1, len(documents) + 1)]
            found += [Text(label, name, document) for label, document in zip(numbered, documents, strict=True)]
    return found


def _run(models: Sequence[Path], names: Sequence[str], options: AnalyzeOptions, console: Console) -> dict[str, Summary]:
    """Each model's table is saved and summed up before the next model runs: two may not fit in memory."""
    with console.status("reading the text"):
        texts = _texts(models, options)
    summaries = {}
    for name, path in zip(names, models, strict=True):
        table = _collect(path, texts, options, console, name)
        about = {"model": name, "fingerprint": fingerprint(path), "command": command()}
        table = replace(table, facts=replace(table.facts, **about))
        table.write(options.out / f"{name}.parquet")
        with console.status("summing up"):
            summaries[name] = summarize(table)
    return summaries


def _collect(path: Path, texts: Sequence[Text], options: AnalyzeOptions, console: Console, name: str) -> RoutingTable:
    model, tokenizer = open_saved(path, dtype=options.dtype or "auto", device=options.device or "auto")
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(escape(name))
        return collect(
            model,
            tokenizer,
            texts,
            window=options.window,
            batch_size=options.batch_size or _BATCH_SIZE,
            max_tokens=options.max_tokens or _MAX_TOKENS,
            progress=lambda done, total: progress.update(bar, completed=done, total=total),
        )


def _read(models: Sequence[Path], names: Sequence[str], options: AnalyzeOptions) -> dict[str, Summary]:
    files = zip(names, models, options.tables, strict=True)
    summaries = {
        name: summarize(RoutingTable.read(file, fingerprint=fingerprint(model))) for name, model, file in files
    }
    _require_same_text({name: one.sample.facts for name, one in summaries.items()})
    return summaries


def _require_same_text(models: dict[str, Facts]) -> None:
    """Saved tables may have been made from anything; those of different tokenizers cannot be compared that way."""
    (first, one), *others = models.items()
    for name, other in others:
        same_tokens = other.tokenizer_hash == one.tokenizer_hash
        if same_tokens and other.text_hash != one.text_hash:
            raise DataError(f"--table: the tables of {first} and {name} are of different texts; make both from one")


def _write(summaries: dict[str, Summary], out: Path) -> None:
    """What the tables say: numbers, the page, and figures where there is matplotlib."""
    report = facts() | {"tables": {name: analysis(summary) for name, summary in summaries.items()}}
    save_text(out / ANALYSIS, json.dumps(report, indent=1) + "\n")
    save_page(summaries, out / PAGE)
    if importlib.util.find_spec("matplotlib") is None:
        shutil.rmtree(out / FIGURES, ignore_errors=True)  # an earlier analysis's
        logger.warning("no figures: they need matplotlib; pip install 'moepp[plots]'")
    else:
        save_figures(summaries, out / FIGURES)


def _remove_others(options: AnalyzeOptions, names: Sequence[str]) -> None:
    """Tables of an earlier analysis, that the numbers and the page beside them say nothing of."""
    in_use = {options.out.resolve() / f"{name}.parquet" for name in names} | {path.resolve() for path in options.tables}
    for path in sorted(options.out.resolve().glob("*.parquet")):
        if path not in in_use:
            path.unlink()
            logger.warning("%s is removed: it is an earlier analysis's", readable(path))
