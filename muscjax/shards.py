"""Features that go to a store as they come off the device, a shard at a time, and come back from it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from muscjax import store
from muscjax.errors import InputError
from muscjax.store import Store
from muscjax.streaming import Stage, Stages

# What is kept must have taken so many times longer to make than keeping it takes.
_WORTH = 20.0
_BYTES_PER_S = 200e6  # of checksum, digest and copy
_ALWAYS = 1 << 20  # bytes that are kept in any case


def stage_field(number: int) -> str:
    """The store's field of one stage."""
    return f"features{number}"


def worth(nbytes: int, seconds: float) -> bool:
    """Is what took so long to make worth the time that keeping it takes?"""
    return nbytes <= _ALWAYS or seconds >= _WORTH * nbytes / _BYTES_PER_S


class Shards:
    """The ``extract.Sink`` on disk: a shard is written, by a thread of its own, as soon as it is complete.

    The features are also held in memory, as the store has them, or read from it when they are needed.
    """

    def __init__(
        self,
        opened: Store,
        stages: int,
        groups: Sequence[str],
        order: Sequence[int],
        *,
        lazy: bool,
        always: bool,
    ) -> None:
        self._store, self._always = opened, always
        self._stages, self._groups = [stage_field(s) for s in range(stages)], groups
        self._place = np.argsort(np.asarray(order, np.int64))  # of each sample in the store
        left = store.missing(opened, verify=True)
        self.missing = [[order[i] for i in ids] for ids in left]
        self._parts: dict[int, dict[str, np.ndarray]] = {}
        self._counts: dict[int, int] = {}
        self._whole: np.ndarray | None = None
        self._fields: dict[str, np.ndarray] = {}
        if not lazy:
            shape = opened.fields[self._stages[0]].shape
            self._whole = np.empty((stages, len(order), *shape), np.float32)
            for name in groups:
                field = opened.fields[name]
                self._fields[name] = np.empty((len(order), *field.shape), field.dtype)
            todo = {ids.start for ids in left}
            for shard in range(opened.shards):
                ids = opened.ids(shard)
                if ids.start not in todo:
                    read = slice(ids.start, ids.stop)
                    self._hold(
                        [order[i] for i in ids],
                        {name: store.column(opened, name)[read] for name in opened.fields},
                    )
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="muscjax-store")
        self._writing: Future[None] | None = None
        self._since = time.perf_counter()

    def put(self, ids: Sequence[int], features: np.ndarray, groups: dict[str, np.ndarray]) -> None:
        """A batch of one shard."""
        places = self._place[np.asarray(ids)]
        shard = int(places[0]) // self._store.per_shard
        own = self._store.ids(shard)
        part = self._parts.setdefault(
            shard,
            {
                name: np.empty((len(own), *field.shape), field.dtype)
                for name, field in self._store.fields.items()
            },
        )
        with np.errstate(over="ignore"):  # told below
            for name, values in (*zip(self._stages, features, strict=True), *groups.items()):
                part[name][places - own.start] = values
        for name in self._stages:
            if part[name].dtype == np.float16 and not np.isfinite(part[name][places - own.start]).all():
                raise InputError("run.features: found features beyond float16, expected float32")
        if self._whole is not None:
            self._hold(ids, {name: part[name][places - own.start] for name in part})
        self._counts[shard] = self._counts.get(shard, 0) + len(ids)
        if self._counts[shard] == len(own):
            self._finish(own, self._parts.pop(shard))

    def _hold(self, ids: Sequence[int], arrays: Mapping[str, np.ndarray]) -> None:
        assert self._whole is not None
        for stage, name in enumerate(self._stages):
            self._whole[stage, ids] = arrays[name]
        for name in self._groups:
            self._fields[name][ids] = arrays[name]

    def _finish(self, ids: range, arrays: dict[str, np.ndarray]) -> None:
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        if self._always or worth(sum(x.nbytes for x in arrays.values()), seconds):
            self._wait()
            self._writing = self._pool.submit(store.write, self._store, ids, arrays)

    def _wait(self) -> None:
        if self._writing is not None:
            self._writing.result()

    def close(self) -> tuple[Any, dict[str, Any]]:
        """Features and groups of all samples; what is on its way to the disk is there."""
        try:
            self._wait()
        finally:
            self._pool.shutdown()
        if self._whole is not None:
            return self._whole, dict(self._fields)
        columns = {name: store.column(self._store, name) for name in self._store.fields}
        features = Stages(tuple(Stage(columns[name], self._place) for name in self._stages))
        return features, {name: columns[name][:][self._place] for name in self._groups}
