"""``moepp bench report``: ``docs/performance.md`` and its plots, from the result files."""

import importlib.util
from pathlib import Path

from rich.console import Console

from ..bench import machines, read_results, report
from ..errors import DataError

IMAGES = "images"


def run_report(results: Path, out: Path) -> None:
    """Writes the page and, beside it in ``images/``, the plots.

    Raises:
        DataError: there are no results, a file is none, or the page cannot be written.
    """
    if not results.is_dir():
        raise DataError(f"{results} is no folder with results; measure with `moepp bench … --json` first")
    found = read_results(results)
    if not found:
        raise DataError(f"{results} has no .json file; measure with `moepp bench … --json` first")
    try:
        out.write_text(report(found, IMAGES), encoding="utf-8")
        written = [out]
        if importlib.util.find_spec("matplotlib"):
            from ..bench.plots import write_plots

            (out.parent / IMAGES).mkdir(exist_ok=True)
            for machine in machines(found):
                written += write_plots(machine, out.parent / IMAGES)
        else:
            Console(stderr=True).print("no plots: matplotlib is not installed; pip install 'moepp[plots]'")
    except OSError as error:
        raise DataError(f"--out={str(out)!r} cannot be written: {error.strerror}; choose another path") from error
    Console().print("\n".join(map(str, written)), highlight=False, soft_wrap=True)
