"""The page of ``moepp analyze``: one HTML file that shows what the experts do on a text, for one model or several.

Nothing is loaded from anywhere: text, numbers, styles and scripts are in the file, and its Content-Security-Policy
allows just these. Whatever comes from the text that was analyzed is data: it is escaped here and shown as text there.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ..errors import DataError
from ..files import replacing
from .numbers import number, numbers, warning
from .page_data import page_data
from .routing_table import RoutingTable
from .summary import Summary, summarize
from .templates import read, render

_SCRIPTS = ("dom.js", "colour.js", "text.js", "types.js", "charts.js", "figures.js", "page.js")
_STYLES = ("base.css", "page.css", "figures.css")


@dataclass(frozen=True)
class Card:
    """A big number with its words."""

    label: str
    value: str
    note: str


def write_page(tables: Mapping[str, RoutingTable], path: Path, *, title: str = "What the experts do") -> None:
    """Writes the page.

    Args:
        tables: by the name that the page calls the model; at least one token each.

    Raises:
        DataError: the file cannot be written.
    """
    save_page({name: summarize(table) for name, table in tables.items()}, path, title=title)


def save_page(summaries: Mapping[str, Summary], path: Path, *, title: str = "What the experts do") -> None:
    """:func:`write_page` for summaries that are there already."""
    tables = {name: summary.sample for name, summary in summaries.items()}
    script = "\n".join(map(read, _SCRIPTS))
    style = "\n".join(map(read, _STYLES))
    page = render(
        "page.html.jinja",
        title=title,
        policy=f"default-src 'none'; img-src data:; script-src {_hash(script)}; style-src {_hash(style)}; "
        "base-uri 'none'; form-action 'none'",
        script=Markup(script),
        style=Markup(style),
        data=Markup(inert_json(page_data(summaries))),
        lead=_lead(summaries),
        warning=warning(summaries),
        cards=[_cards(summary) for summary in summaries.values()],
        names=list(tables),
        numbered=list(enumerate(tables)),
        rows=_rows(summaries),
        top_k=max(table.top_k for table in tables.values()),
        facts=_facts(tables),
    )
    try:
        with replacing(path) as incomplete:
            incomplete.write_text(page, encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}; choose another folder") from error


def inert_json(value: Any) -> str:
    """JSON in ASCII that cannot end the script element it stands in, whatever its strings say."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _lead(summaries: Mapping[str, Summary]) -> str:
    if len(summaries) > 2:
        used = [one.ffn for one in summaries.values()]
        least, most = min(used), max(used)
        return f"{len(summaries)} models, which use from {least:.2f} to {most:.2f} FFN experts per token and layer."
    return " ".join(_sentence(name, summary) for name, summary in summaries.items())


def _sentence(name: str, summary: Summary) -> str:
    top_k = summary.sample.top_k
    uses = f"uses {summary.ffn:.2f} of at most {top_k} FFN experts per token and layer"
    shared = f", besides {count} that all tokens share" if (count := summary.sample.facts.shared_experts) else ""
    if summary.full:
        return f"{name} has FFN experts alone: every token uses {top_k} of them in every layer{shared}."
    if summary.vanilla:
        return f"{name} has FFN experts alone and {uses}{shared}: other choices were dropped."
    return f"{name} {uses}{shared}, which saves {summary.saved:.0%} of the expert FLOPs."


def _cards(summary: Summary) -> list[Card]:
    table = summary.sample
    note = f"tau = {table.facts.tau:g} aims at {summary.aim:.2f}"
    if summary.vanilla:
        note = "all that it may use" if summary.full else f"of {table.top_k} that it may use"
    shared = table.facts.shared_experts
    most = f"{table.top_k} + {shared} shared" if shared else table.top_k
    return [
        Card("FFN experts per token", f"{summary.ffn:.2f}", note),
        Card("expert FLOPs saved", f"{summary.saved:.0%}", f"against {most} FFN experts for every token"),
        Card("loss", number(summary.loss), "nats per token"),
        Card("tokens", f"{summary.num_tokens:,}", f"{len(table.documents):,} documents: {', '.join(table.sources)}"),
    ]


def _rows(summaries: Mapping[str, Summary]) -> list[tuple[str, list[str]]]:
    """The same numbers for each model, as text that needs no script."""
    columns = [numbers(summary) for summary in summaries.values()]
    labels = dict.fromkeys(label for column in columns for label in column)
    return [(label, [column.get(label, "") for column in columns]) for label in labels]


def _facts(tables: Mapping[str, RoutingTable]) -> dict[str, str]:
    """How the numbers were made; what differs between models is told for each."""

    def tell(write: Any) -> str:
        values: Sequence[str] = [write(table) for table in tables.values()]
        if len(set(values)) == 1:
            return values[0]
        return "; ".join(f"{name}: {value}" for name, value in zip(tables, values, strict=True))

    return {
        "command": tell(lambda table: table.facts.command),
        "experts": tell(_experts),
        "tau": tell(lambda table: f"{table.facts.tau:g}"),
        "gating residuals": tell(lambda table: "yes" if table.facts.gating_residual else "no"),
        "routing edited": tell(lambda table: "yes, on purpose" if table.facts.edited else "no"),
        "window": tell(lambda table: f"{table.facts.window:,} tokens"),
        "dtype": tell(lambda table: table.facts.dtype),
        "model files": tell(lambda table: table.facts.fingerprint[:16] or "not saved"),
        "text": tell(lambda table: table.facts.text_hash[:16]),
        "versions": tell(lambda table: ", ".join(f"{key} {value}" for key, value in table.facts.versions.items())),
    }


def _experts(table: RoutingTable) -> str:
    layout = table.layout
    parts = {"FFN": layout.ffn, "constant": layout.constant, "copy": layout.copy, "zero": layout.zero}
    shared = f", besides {count} that all tokens share" if (count := table.facts.shared_experts) else ""
    written = ", ".join(f"{count} {kind}" for kind, count in parts.items() if count)
    return f"{written}; top-{table.top_k} of them in each of {table.num_layers} layers{shared}"
