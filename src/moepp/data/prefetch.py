"""Reading ahead in a thread.

A thread suffices: reading waits and tokenizers work outside Python's interpreter lock. A loader's worker *process*
would have to be forked from a process with threads and a GPU, would wrap every error in its own, and couldn't say
where in the text the training is.
"""

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")
_END: Any = object()


def prefetch(items: Iterator[T], ahead: int) -> Generator[T]:
    """The same items, up to ``ahead`` of them taken from ``items`` before they are asked for.

    What ``items`` raises is raised here, in its turn. The thread ends with this iterator: after the last item, an
    error, or ``close()``.
    """
    with ThreadPoolExecutor(1, "moepp-prefetch") as thread:
        waiting = deque(thread.submit(next, items, _END) for _ in range(ahead))
        try:
            while (item := waiting.popleft().result()) is not _END:
                waiting.append(thread.submit(next, items, _END))
                yield item
        finally:
            thread.shutdown(cancel_futures=True)
