"""What is needed next, made by threads a little before it is needed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetch(
    load: Callable[[Item], Result], items: Iterable[Item], *, workers: int = 2, ahead: int = 4
) -> Iterator[Result]:
    """``map(load, items)`` in order, with at most ``ahead`` results waiting to be taken.

    An error of ``load`` is raised at its own place; what was not begun by then is dropped.
    """
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="muscjax-load") as pool:
        try:
            for item in items:
                if len(pending) > ahead:
                    yield pending.popleft().result()
                pending.append(pool.submit(load, item))
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
