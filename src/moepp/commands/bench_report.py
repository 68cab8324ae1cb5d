"""``moepp bench report``: ``docs/performance.md``, ``docs/communication.md`` and their plots, from the result files."""

import importlib.util
from pathlib import Path

from rich.console import Console

from ..bench import FOLDER, comm_page, machines, read_comm, read_results, report
from ..errors import DataError

IMAGES = "images"


def run_report(results: Path, out: Path) -> None:
    """Writes the page and, where there are results of it, that of expert parallelism; plots go to ``images/`` beside.

    Raises:
        DataError: there are no results, a file is none, or the page cannot be written.
    """
    if not results.is_dir():
        raise DataError(f"{results} is no folder with results; measure with `moepp bench … --json` first")
    found, communication = read_results(results), read_comm(results / FOLDER)
    if not found:
        raise DataError(f"{results} has no .json file; measure with `moepp bench … --json` first")
    try:
        out.write_text(report(found, IMAGES), encoding="utf-8")
        written = [out]
        if communication:
            written.append(out.with_name(f"{FOLDER}.md"))
            written[-1].write_text(comm_page(communication, IMAGES), encoding="utf-8")
        if importlib.util.find_spec("matplotlib"):
            from ..bench.plots import write_comm_plots, write_plots

            (out.parent / IMAGES).mkdir(exist_ok=True)
            for machine in machines(found):
                written += write_plots(machine, out.parent / IMAGES)
            written += write_comm_plots(communication, out.parent / IMAGES)
        else:
            Console(stderr=True).print("no plots: matplotlib is not installed; pip install 'moepp[plots]'")
    except OSError as error:
        raise DataError(f"--out={str(out)!r} cannot be written: {error.strerror}; choose another path") from error
    Console().print("\n".join(map(str, written)), markup=False, highlight=False, soft_wrap=True)
