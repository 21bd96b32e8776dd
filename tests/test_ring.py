"""The instruments of ``benchmarks.ring`` and ``benchmarks.hlo``; ``test_parallel`` has the ring itself."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks import hlo, ring


def slices(device, operation, begin, length):
    arguments = {"device_ordinal": str(device), "hlo_op": operation}
    return {"ph": "X", "name": operation, "ts": begin, "dur": length, "args": arguments}


def test_slices_become_disjoint_intervals_of_each_device():
    events = [
        slices(1, "dot.1", 1000, 1000),
        slices(1, "fusion.2", 1500, 2000),
        slices(1, "while.7", 0, 90000),
        slices(1, "ppermute.3", 3000, 2000),
        slices(0, "dot.1", 2000, 1000),
        {"ph": "X", "name": "ThunkExecutor", "ts": 0, "dur": 9, "args": {"device_ordinal": "1"}},
        {"ph": "M", "name": "thread_name", "args": {"name": "x"}},
    ]
    found = ring.intervals(events)
    assert found == {
        0: {"compute": [(1, 2)], "transfer": []},
        1: {"compute": [(0, 2.5)], "transfer": [(2, 4)]},
    }
    first, second = ring.summary(found)
    assert (first["hidden"], second["both"], second["hidden"]) == (0, 0.5, 0.25)


def test_gaps_close_only_where_they_are_short():
    assert ring.merged([(5, 6), (0, 1), (1.1, 2), (0.2, 0.3)]) == [(0, 2), (5, 6)]


def test_the_model_begins_a_part_as_soon_as_its_data_are_there():
    parts = [
        hlo.Part("send", 0, 4, frozenset()),
        hlo.Part("own", 10, 0, frozenset()),
        hlo.Part("again", 0, 4, frozenset({"send"})),
        hlo.Part("cross", 10, 0, frozenset({"send"})),
        hlo.Part("back", 0, 2, frozenset({"cross"})),
    ]
    found = ring.modelled(parts, flops=1e3, link=1e3)
    assert found == {"compute": [(0, 10), (10, 20)], "transfer": [(0, 4), (4, 8), (20, 22)]}


def test_products_are_counted_with_the_loops_around_them():
    def run(x, y):
        def step(i, total):
            return total + jnp.matmul(x + i.astype(x.dtype), y, precision=jax.lax.Precision.HIGHEST)

        return jax.lax.fori_loop(0, 7, step, jnp.zeros((30, 20)))

    shapes = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((30, 50), (50, 20)))
    text = jax.jit(run).lower(*shapes).compile().as_text()
    assert hlo.read(text) == hlo.Program(7 * 2 * 30 * 50 * 20, 0, 0)
    (part,) = hlo.parts(text)
    assert (part.product_flops, part.bytes_sent, part.after) == (7 * 2 * 30 * 50 * 20, 0, frozenset())


def test_a_loop_of_unknown_length_is_refused():
    def run(x, n):
        return jax.lax.fori_loop(0, n, lambda i, y: y @ x, x)

    square, count = jax.ShapeDtypeStruct((8, 8), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)
    with pytest.raises(ValueError, match="not known"):
        hlo.read(jax.jit(run).lower(square, count).compile().as_text())
