"""How fast training samples come, with nothing else to do: tokens per second of one process's loader alone."""

import os
import time
from collections.abc import Iterator
from itertools import chain, repeat

from ..data import StreamingData, TrainingData, train_loader
from .method import Timing
from .rows import Row

_ROUNDS = 5


def measure_loader(
    data: TrainingData | StreamingData, *, name: str, batch_size: int, ranks: int, seconds: float
) -> Row:
    """The first process of ``ranks``, reading its micro-batches as fast as it can.

    A round is as long as the others, not as large; what was read ahead before the first is not counted. The row's
    ``variant`` is ``stream:RANKS`` or ``memory:RANKS``, its ``size`` the name given, its time one micro-batch's.

    Args:
        name: of what is read.
        seconds: for all rounds.

    Raises:
        ConfigError, DataError: as :func:`moepp.data.train_loader` does.
    """
    loader = train_loader(data, batch_size=batch_size, ranks=ranks)
    batches = chain.from_iterable(repeat(loader))  # from the first on again when the run is over
    tokens = next(batches)["input_ids"].numel()
    times = [_round(batches, seconds / _ROUNDS) for _ in range(_ROUNDS + 1)][1:]
    timing = Timing.of(tuple(times))
    kind, threads = ("stream", tokenizer_threads()) if isinstance(data, StreamingData) else ("memory", 1)
    return Row(
        benchmark="loader",
        variant=f"{kind}:{ranks}",
        pass_="loading",
        size=name,
        dtype="int64",
        device="cpu",
        threads=threads,
        tokens=tokens,
        batch=batch_size,
        median_s=timing.median,
        iqr_s=timing.iqr,
        tokens_per_s=tokens / timing.median,
    )


def tokenizer_threads() -> int:
    """What ``tokenizers`` uses, as its documentation says."""
    return int(os.environ.get("RAYON_NUM_THREADS") or len(os.sched_getaffinity(0)))


def _round(batches: Iterator[object], seconds: float) -> float:
    """The time of one batch, over as many as ``seconds`` allow."""
    begin = time.perf_counter()
    count = 0
    while (spent := time.perf_counter() - begin) < seconds or not count:
        next(batches)
        count += 1
    return spent / count
