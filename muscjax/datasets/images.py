"""Images and scans that are loaded when they are asked for, a little ahead of that, by a few threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar, overload

import numpy as np

from muscjax.ahead import prefetch as prefetch

Item = TypeVar("Item")


class Images(Sequence[np.ndarray]):
    """A lazy (N, s, s, 3) uint8 array of images: ``len``, an index, a slice or a list of indices.

    Asking for a batch starts loading the one after it. No more than ``ahead`` images beyond a request are
    held; what was handed out is not kept. The threads end with ``close``, at the end of a ``with`` block, or
    when the object is collected.

    Args:
      load: from an item to (s, s, 3) uint8; called from threads.
      items: one per image.
      workers: threads.
      ahead: images to load beyond a request; None means as many as were requested.
    """

    def __init__(
        self,
        load: Callable[[Item], np.ndarray],
        items: Sequence[Item],
        *,
        workers: int = 2,
        ahead: int | None = None,
    ) -> None:
        self._load = load
        self._items = items
        self._ahead = ahead
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="muscjax-image")
        self._pending: dict[int, Future[np.ndarray]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice | Sequence[int] | np.ndarray) -> np.ndarray: ...
    def __getitem__(self, index: int | slice | Sequence[int] | np.ndarray) -> np.ndarray:
        """(s, s, 3) for one index, (b, s, s, 3) for several; errors of ``load`` are raised here."""
        if isinstance(index, slice):
            wanted = list(range(len(self)))[index]
        else:
            wanted = [range(len(self))[int(i)] for i in np.atleast_1d(np.asarray(index))]
        if not wanted:
            raise IndexError("found an empty batch, expected at least one image")
        last = wanted[-1] + 1
        beyond = range(last, min(len(self), last + (len(wanted) if self._ahead is None else self._ahead)))
        with self._lock:
            keep = {*wanted, *beyond}
            for stale in [i for i in self._pending if i not in keep]:
                self._pending.pop(stale).cancel()
            for i in (*dict.fromkeys(wanted), *beyond):
                if i not in self._pending:
                    self._pending[i] = self._pool.submit(self._load, self._items[i])
            futures = {i: self._pending.pop(i) for i in dict.fromkeys(wanted)}
        images = [futures[i].result() for i in wanted]
        return images[0] if isinstance(index, (int, np.integer)) else np.stack(images)

    def close(self) -> None:
        """Drop what is not begun and end the threads; the object cannot be used afterwards."""
        with self._lock:
            self._pending.clear()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> Images:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
