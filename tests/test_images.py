"""Arrays that are loaded when they are asked for."""

from __future__ import annotations

import threading
import time

import jax
import numpy as np
import pytest

from benchmarks import host
from muscjax import datasets, extract
from muscjax.config import Config
from muscjax.datasets.synthetic import write_line
from muscjax.errors import InputError


class TestImages:
    def test_indexing(self):
        arrays = np.random.default_rng(0).integers(0, 255, (11, 2, 2, 3), dtype=np.uint8)
        with datasets.Images(lambda i: arrays[i], range(11)) as images:
            assert len(images) == 11
            np.testing.assert_array_equal(images[2:6], arrays[2:6])
            np.testing.assert_array_equal(images[8:20], arrays[8:20])
            np.testing.assert_array_equal(images[-1], arrays[-1])
            np.testing.assert_array_equal(images[np.array([3, 0, 3])], arrays[[3, 0, 3]])
            np.testing.assert_array_equal(images[::-1], arrays[::-1])
            np.testing.assert_array_equal(np.stack(list(images)), arrays)
            for bad in (11, slice(11, 12)):
                with pytest.raises(IndexError):
                    images[bad]

    def test_next_batch_is_loaded_ahead_and_held_once(self):
        loaded = []

        def load(i):
            loaded.append(i)
            return np.full((1, 1, 3), i, np.uint8)

        with datasets.Images(load, range(12), workers=2) as images:
            images[0:4]
            deadline = time.monotonic() + 5
            while len(loaded) < 8 and time.monotonic() < deadline:
                time.sleep(0.001)
            assert sorted(loaded) == list(range(8))
            images[4:8]
            images[8:12]
            assert sorted(loaded) == list(range(12))

    def test_errors_come_where_they_belong(self):
        def load(i):
            if i == 5:
                raise InputError("5: bad")
            return np.zeros((1, 1, 3), np.uint8)

        with datasets.Images(load, range(8)) as images:
            images[0:4]
            with pytest.raises(InputError, match="5: bad"):
                images[4:8]
            assert images[6:8].shape == (2, 1, 1, 3)

    def test_threads_end(self):
        before = set(threading.enumerate())
        images = datasets.Images(lambda i: np.zeros((1, 1, 3), np.uint8), range(8))
        images[0:4]
        ours = set(threading.enumerate()) - before
        assert ours
        images.close()
        for thread in ours:
            thread.join(timeout=5)
        assert not any(thread.is_alive() for thread in ours)

    def test_prefetch_is_ordered_and_bounded(self):
        begun = []

        def load(i):
            begun.append(i)
            return i * i

        results = datasets.prefetch(load, range(20), workers=3, ahead=2)
        assert next(results) == 0
        time.sleep(0.05)
        assert len(begun) <= 4
        assert list(results) == [i * i for i in range(1, 20)]

    def test_prefetch_raises_in_place(self):
        def load(i):
            if i == 2:
                raise InputError("2: bad")
            return i

        results = datasets.prefetch(load, range(9))
        assert [next(results), next(results)] == [0, 1]
        with pytest.raises(InputError, match="2: bad"):
            next(results)


def test_a_batch_is_read_while_the_backbone_works_and_no_more_than_stated():
    """The structure of "I/O never starves the device"; ``benchmarks.host`` has the share of time."""
    batch, ahead, total = 8, 16, 40
    taken, begun, started = [], [], threading.Semaphore(0)
    lead = []

    def load(i):
        begun.append(i)
        started.release()
        return np.full((4, 4, 3), i, np.uint8)

    class Watched(datasets.Images):
        def __getitem__(self, index):
            found = super().__getitem__(index)
            taken.append(len(found))
            return found

    def backbone(images):
        def work(pixels):
            # the batch after this one is read without anybody asking for it
            wanted = min(total, int(pixels[0, 0, 0, 0]) + 2 * batch)
            deadline = time.monotonic() + 5
            while len(set(begun)) < wanted and time.monotonic() < deadline:
                started.acquire(timeout=0.1)
            lead.append(len(set(begun)) - int(pixels[-1, 0, 0, 0]) - 1)
            return np.zeros((1, len(pixels), 4, 2), np.float32)

        return jax.pure_callback(work, jax.ShapeDtypeStruct((1, len(images), 4, 2), np.float32), images)

    with Watched(load, range(total), ahead=ahead) as images:
        extract.extract_images(images, backbone, Config(), pool=lambda grid, config: grid[None])
        assert taken == [1] + [batch] * (total // batch)
        assert len(lead) == total // batch
        # one batch may have been asked for while this one runs, and the rest is read ahead of it
        assert all(min(batch, total - batch * (k + 1)) <= n <= batch + ahead for k, n in enumerate(lead))
        assert len(begun) == total + 1  # the first one is read once more, for its shape


@pytest.mark.slow
@pytest.mark.parametrize("modality", ["image", "both"])
def test_reading_keeps_a_backbone_of_5_ms_busy(tmp_path, modality):
    """At least 80 % of the time after the first batch, on two quiet cores; the best of three tries."""
    root = write_line(tmp_path, part="gear", scans=108, size=224)
    scans = datasets.open_dataset(root)[0].scans
    assert max(host.cached_busy_shares(scans, modality, tries=3)) >= 0.8
