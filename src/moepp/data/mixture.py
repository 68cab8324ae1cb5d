"""Which source a sample comes from: a function of the seed and the sample's number, and of nothing else.

Nothing has to be saved or replayed to know it, so a run resumes at any sample and a longer run begins like a shorter
one.
"""

from collections.abc import Iterator, Sequence

import numpy as np

_CHUNK = 1 << 16  # samples drawn from one generator; part of the definition


def draw_sources(weights: Sequence[float], seed: int, num_samples: int) -> np.ndarray:
    """The source of samples 0 to ``num_samples - 1``, as indices into ``weights`` (which sum to one)."""
    chunks = [_draw(weights, seed, number) for number in range(-(-num_samples // _CHUNK))]
    return np.concatenate([*chunks, np.empty(0, np.int16)])[:num_samples]


def iterate_sources(weights: Sequence[float], seed: int, start: int = 0) -> Iterator[int]:
    """The same indices without end, from sample ``start`` on."""
    while True:
        number, offset = divmod(start, _CHUNK)
        yield from _draw(weights, seed, number)[offset:].tolist()
        start = (number + 1) * _CHUNK


def _draw(weights: Sequence[float], seed: int, chunk: int) -> np.ndarray:
    return np.random.default_rng([seed, chunk]).choice(len(weights), size=_CHUNK, p=weights).astype(np.int16)
