"""From variants to rows: each variant is checked against the reference, then all are timed in turns."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ..config import MoEConfig
from ..errors import BackendUnavailable
from .method import Timing, interleave
from .peaks import READ_BYTES, ROWS, dense_flops, dense_products, memory_read
from .rows import Pass, Row

# How far from the reference a result may be, as a share of the reference's largest element. One rounding is about
# 2**-24, 2**-11 and 2**-8; a layer makes a handful of them.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}
# Quantised weights are other weights: what is allowed is what their rounding does to a layer of normal ones.
QUANTIZED_TOLERANCE = {"int8": 5e-2, "int4": 0.3}
# Other people's code fails in its own ways, when it is called.
PEER_FAILURES = (RuntimeError, ImportError, OSError, ValueError, TypeError, AttributeError, AssertionError)

Say = Callable[[str], None]
Run = Callable[[], Sequence[Tensor]]


@dataclass(frozen=True, kw_only=True)
class Case:
    """What the rows of one run share."""

    benchmark: str
    size: str
    config: MoEConfig
    dtype: torch.dtype
    device: str
    tokens: int
    routing: Literal["synthetic", "learned"]

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.benchmark} {self.size} {self.dtype_name} T={self.tokens}"

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def row(self, variant: str, pass_: Pass, **values: Any) -> Row:
        """A row of this case, with nothing measured yet."""
        shared = {"tokens": self.tokens, "routing": self.routing} | values
        return Row(
            benchmark=self.benchmark,
            variant=variant,
            pass_=pass_,
            size=self.size,
            dtype=self.dtype_name,
            device=self.device,
            threads=torch.get_num_threads() if self.device == "cpu" else None,
            **shared,
        )


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One thing to time."""

    row: Row
    run: Run
    """Returns what is compared with the truth: outputs and, in training, all gradients."""
    truth: str
    """Which of the group's truths it must equal."""
    passes: int = 1
    """Through one layer, in one call."""
    flops: float = 0.0
    """Of the FFN experts, in one call."""
    touched_bytes: float = 0.0
    """Of the FFN experts' weights, in one call."""
    twin: str | None = None
    """Key of the vanilla twin."""
    over: Sequence[str] = ()
    """Keys of what else its speed is compared with."""
    tolerance: float | None = None
    """How far from the truth it may be, if further than its dtype says."""
    foreign: bool = False

    @property
    def key(self) -> str:
        return f"{self.row.variant}@{self.row.tau}"


@dataclass(frozen=True)
class Group:
    """Variants that are timed in turns."""

    case: Case
    variants: Sequence[Variant]
    truths: Mapping[str, Run]
    absent: Sequence[Row] = field(default=())
    """What cannot run, with the reason."""
    read: bool = False
    """Whether the rate of reading memory matters here."""


def measure_group(group: Group, *, rounds: int, budget: float | None, say: Say = lambda _: None) -> list[Row]:
    """Checks, then times; the peaks of the machine come first, what cannot run last."""
    checked, failed = _check(group, budget, say)
    case = group.case
    products = dense_products(case.config, case.dtype, case.device)
    timed: dict[str, Callable[[], object]] = {variant.key: variant.run for variant in checked}
    timed |= {f"peak:{name}": run for name, run in products.items()}
    if group.read:
        timed["peak:read"] = memory_read(case.device)
    say("timing")
    timings = interleave(timed, rounds=rounds, budget=budget)
    peak = dense_flops(case.config, case.device) / min(timings[f"peak:{name}"].median for name in products)
    rate = READ_BYTES / timings["peak:read"].median if group.read else None
    rows = peak_rows(case, timings, products)
    if group.read:
        rows.append(_peak_row(case, "read", timings["peak:read"], None))
    rows += [_finish(variant, timings, peak, rate) for variant in checked]
    return [*rows, *failed, *group.absent]


def peak_rows(case: Case, timings: Mapping[str, Timing], products: Iterable[str]) -> list[Row]:
    """The dense products' rows, each with its share of the fastest one's rate."""
    found = {name: timings[f"peak:{name}"] for name in products}
    best = min(timing.median for timing in found.values())
    return [_peak_row(case, name, timing, best / timing.median) for name, timing in found.items()]


def checked(row: Row, tolerance: float | None = None) -> Row:
    """The row, with the reason why it is not to be timed if its error is beyond the tolerance, else its dtype's."""
    error, allowed = row.max_relative_error or 0.0, tolerance or TOLERANCE[getattr(torch, row.dtype)]
    if error <= allowed:
        return row
    reason = f"wrong: off by {error:.1e} of the largest element, allowed {allowed:.0e}"
    return replace(row, max_relative_error=_finite(error), reason=reason)


def relative_error(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The worst tensor's largest deviation over the expected one's largest element; infinite if one is not finite."""
    worst = 0.0
    for ours, truth in zip(actual, expected, strict=True):
        assert ours.shape == truth.shape
        if not ours.isfinite().all():
            return float("inf")
        largest = max(truth.abs().max().item(), 1e-3)
        worst = max(worst, (ours.float() - truth.float()).abs().max().item() / largest)
    return worst


def _check(group: Group, budget: float | None, say: Say) -> tuple[list[Variant], list[Row]]:
    """The variants that are right, with their error; and rows that say why the others are not timed."""
    checked, failed = [], []
    for name, truth in group.truths.items():
        say(f"the reference of {name}")
        expected = truth()
        for variant in (one for one in group.variants if one.truth == name):
            say(f"checking {variant.row.variant}")
            row, fine = _check_one(variant, expected, variant.tolerance or TOLERANCE[group.case.dtype], budget)
            if fine:
                checked.append(replace(variant, row=row))
            else:
                failed.append(row)
        del expected
    return checked, failed


def _check_one(
    variant: Variant, expected: Sequence[Tensor], tolerance: float, budget: float | None
) -> tuple[Row, bool]:
    try:
        error = relative_error(variant.run(), expected)
        seconds = _seconds(variant.run) if variant.foreign and budget is not None else 0.0
    except BackendUnavailable as unavailable:
        return replace(variant.row, reason=str(unavailable)), False
    except PEER_FAILURES as failure:
        if not (variant.foreign or isinstance(failure, torch.OutOfMemoryError)):
            raise
        return replace(variant.row, reason=f"{type(failure).__name__}: {str(failure).splitlines()[0][:200]}"), False
    row = checked(replace(variant.row, max_relative_error=error), tolerance)
    if row.reason is not None:
        return row, False
    if budget is not None and 5 * seconds > budget:
        reason = f"one pass takes {seconds:.0f} s, too slow for {budget:.0f} s a group; raise --seconds"
        return replace(row, reason=reason), False
    return row, True


def _seconds(run: Run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _finite(error: float) -> float | None:
    return error if error < float("inf") else None  # JSON knows no infinity


def _peak_row(case: Case, name: str, timing: Timing, fraction: float | None) -> Row:
    tokens = 0 if name == "read" else ROWS[torch.device(case.device).type]
    return replace(
        case.row(f"peak:{name}", "forward", tokens=tokens, routing=None),
        median_s=timing.median,
        iqr_s=timing.iqr,
        fraction_of_peak=fraction,
    )


def _finish(variant: Variant, timings: Mapping[str, Timing], peak: float, rate: float | None) -> Row:
    timing = timings[variant.key]
    row, twin = variant.row, variant.twin
    over = [key for key in (twin, *variant.over) if key is not None and key in timings]
    speedup = {key.partition("@")[0]: timings[key].median / timing.median for key in over}
    gain = None if twin is None else speedup.get(twin.partition("@")[0])
    return replace(
        row,
        median_s=timing.median / variant.passes,
        iqr_s=timing.iqr / variant.passes,
        tokens_per_s=row.tokens * variant.passes / timing.median,
        fraction_of_peak=variant.flops / timing.median / peak if variant.flops else None,
        fraction_of_bandwidth=variant.touched_bytes / timing.median / rate if rate else None,
        speedup_over=speedup,
        fraction_of_bound=gain / row.bound if gain and row.bound else None,
    )
