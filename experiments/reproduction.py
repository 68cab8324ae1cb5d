"""docs/reproduction.md from the results beside the experiments: every number in it comes out of their JSON."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .catalogue import NAMES, experiment
from .paired import CONFIDENCE
from .result import Result, Table
from .scales import HERE, SCALES
from .show import sentences

PAGE = HERE.parent / "docs" / "reproduction.md"
_HEADLINE = "headline"
_INTRODUCTION = f"""# Reproduction

Every table and figure of the paper (arXiv 2410.07348), and questions that it left open, each measured by one command.
This page is written by `python -m experiments report` from the JSON files in
[`experiments/results`](../experiments/results); the paper's numbers stand beside ours.

```
pip install -e '.[experiments]'
python -m experiments.table3 --scale tiny             # trains what is missing, measures, prints, writes JSON and a plot
python -m experiments all --scale tiny --jobs 2       # everything that is missing or changed; two trainings at a time
python -m experiments pool --scale gpu --minutes 10   # trains for ten minutes, goes on where it was the next time
```

**Protocol.** One pool of trained models serves all experiments. Models of one seed see the same samples in the same
order and start from the same value of every weight that both have, so differences are taken seed by seed; they come
with Student's {CONFIDENCE:.0%} interval over seeds, and where it spans 0 the word is *unresolved*. With three seeds it
reaches 2.5 standard deviations of a difference to either side, so what is resolved is large; with the headline's six,
1.05. Of n such intervals, about n / 20 miss the true value: of all that is resolved on this page, some is by chance.
Losses are in nats per token of held-out text. *Synthetic* routing has exactly the load that tau's balance implies,
*learned* is what a trained model chose; the share of choices that went to FFN experts stands beside the one aimed at.
Timings are medians of interleaved rounds.
"""


def write_page() -> None:
    """Writes the page from the results that are there."""
    PAGE.write_text(page_text(), encoding="utf-8")


def page_text() -> str:
    """The page as it should be."""
    results = {name: _results(name) for name in NAMES}
    return "\n".join(_lines(results)).rstrip() + "\n"


def _results(name: str) -> list[Result]:
    paths = [scale.results / f"{name}.json" for scale in SCALES.values()]
    return [Result.read(path) for path in paths if path.is_file()]


def _lines(results: Mapping[str, list[Result]]) -> Iterator[str]:
    yield _INTRODUCTION
    yield from _scales(results)
    yield from _summary(results)
    for name, found in results.items():
        yield f"## {experiment(name).title}\n"
        yield f"`python -m experiments.{name}`\n"
        if not found:
            yield "Not measured.\n"
        for result in found:
            yield from _section(result)


def _scales(results: Mapping[str, list[Result]]) -> Iterator[str]:
    """Where each scale's numbers come from, or that there are none."""
    yield "| scale | experiments | trained on | measured on | versions |\n|---|---|---|---|---|"
    mixed = []
    for name in SCALES:
        there = [one for found in results.values() for one in found if one.scale == name]
        if not there:
            yield f"| {name} | not measured | | | |"
            continue
        trainings = [facts for one in there for facts in one.trained]
        trained, measured = sorted(set(map(_machine, trainings))), sorted({_machine(one.facts) for one in there})
        versions = sorted({_versions(facts) for facts in (*trainings, *(one.facts for one in there))})
        mixed += [name] if len(versions) > 1 else []
        count = f"{len(there)} of {len(results)}"
        yield f"| {name} | {count} | {'; '.join(trained)} | {'; '.join(measured)} | {'; '.join(versions)} |"
    yield ""
    if mixed:
        yield f"**Versions are mixed at {', '.join(mixed)}**: not all numbers there come from the same software.\n"


def _machine(facts: Mapping[str, Any]) -> str:
    machine = facts["machine"]
    return str(machine["gpu"] or machine["processor"])


def _versions(facts: Mapping[str, Any]) -> str:
    versions = facts["versions"]
    return ", ".join(f"{name} {versions[name]}" for name in ("moepp", "torch", "transformers") if name in versions)


def _summary(results: Mapping[str, list[Result]]) -> Iterator[str]:
    """The headline and what the paper claims; a comparison that several items make stands there once."""
    yield "## The headline and the paper's claims\n"
    yield "| item | scale | claim | measured here | |\n|---|---|---|---|---|"
    said: set[tuple[str, str]] = set()
    for result in (one for found in results.values() for one in found):
        for claim in result.claims:
            numbers = result.scale, claim.evidence  # equal ones are of the same comparison
            if numbers not in said and (claim.origin == "paper" or result.name == _HEADLINE):
                said.add(numbers)
                item = f"[{result.title.split(':')[0]}](#{_anchor(result.title)})"
                yield _row([item, result.scale, claim.text, claim.evidence, f"**{claim.verdict}**"])
    yield "\nThe sections hold what we asked besides, and controls of our own set-up: these *hold* or *do not hold*.\n"


def _anchor(title: str) -> str:
    """As GitHub makes one of a heading."""
    kept = "".join(c for c in title.lower() if c.isalnum() or c in " -_")
    return kept.replace(" ", "-")


def _section(result: Result) -> Iterator[str]:
    seeds = f", seeds {', '.join(map(str, result.seeds))}" if result.seeds else ""
    yield f"**{result.scale}**{seeds}\n"
    drawing = SCALES[result.scale].results / f"{result.name}.svg"
    if drawing.is_file():
        yield f"![{result.title}]({os.path.relpath(drawing, PAGE.parent)})\n"
    for table in result.tables:
        yield from markdown(table)
    for claim in result.claims:
        yield f"- *{claim.verdict}*: {sentences(claim)}"
    for limit in result.limits:
        yield f"- {limit}"
    yield ""


def markdown(table: Table) -> Iterator[str]:
    """A table in Markdown, its title before and its note after it."""
    yield f"{table.title}\n"
    for row in (table.head, ["---"] * len(table.head), *table.rows):
        yield _row(row)
    yield f"\n{table.note}\n" if table.note else ""


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
