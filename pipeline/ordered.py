"""Work on several items at once, in threads or processes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")


def ordered(
    pool: Executor, work: Callable[[T], U], items: Iterable[T], workers: int
) -> Iterator[U]:
    """Like `map`: results in order; but few of them are held, however many items there are."""
    waiting: deque[Future[U]] = deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) > 2 * workers:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
