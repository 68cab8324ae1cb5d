"""Reading ahead in a thread.

A thread suffices: reading waits and tokenizers work outside Python's interpreter lock. A loader's worker *process*
would have to be forked from a process with threads and a GPU, would wrap every error in its own, and couldn't say
where in the text the training is.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar
from weakref import finalize

T = TypeVar("T")
_END: Any = object()


class Prefetch(Iterator[T]):
    """The same items, up to ``ahead`` of them taken from ``items`` before they are asked for.

    What ``items`` raises is raised here, in its turn. After ``close()``, or when this iterator is forgotten, the thread
    ends with the item that it is at; nobody waits for it.
    """

    def __init__(self, items: Iterator[T], ahead: int):
        thread = ThreadPoolExecutor(1, "moepp-prefetch")
        self._ask: Callable[[], Future[T]] = lambda: thread.submit(next, items, _END)
        self._waiting = deque(self._ask() for _ in range(ahead))
        self.close = finalize(self, thread.shutdown, wait=False, cancel_futures=True)

    def __next__(self) -> T:
        item = self._waiting.popleft().result()
        if item is _END:
            raise StopIteration
        self._waiting.append(self._ask())
        return item
