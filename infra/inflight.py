"""Several items of work in flight at once, with the results in the order of the items.

The invariant: results come in the order of the items and each item is worked on once, so what is made from them does
not depend on which was ready first. Never more than `ahead` items are taken before their results are asked for.

For work that waits (for a server, a disk): the threads share one interpreter.

>>> list(in_order(len, ["a", "bbb", "cc"], threads=2))
[1, 3, 2]
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_order(work: Callable[[T], R], items: Iterable[T], threads: int, ahead: int | None = None) -> Iterator[R]:
    """`work(item)` for each item, `threads` at a time, at most `ahead` (default: four a thread) unread.

    The first error, in the order of the items, is raised; then, or where the reader leaves early, items not begun are
    left alone and those begun are waited for: a paid answer on its way is still received.
    """
    items = iter(items)
    with ThreadPoolExecutor(threads, thread_name_prefix="in_order") as pool:
        begun: deque[Future[R]] = deque(pool.submit(work, item) for item in islice(items, ahead or 4 * threads))
        try:
            while begun:
                result = begun.popleft().result()
                begun.extend(pool.submit(work, item) for item in islice(items, 1))
                yield result
        finally:
            for future in begun:
                future.cancel()
