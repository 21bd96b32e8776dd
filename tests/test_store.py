import hashlib
import json
import os
import threading

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muscjax import files, store, storecheck
from muscjax.errors import InputError
from muscjax.store import Field


@pytest.fixture(scope="module", autouse=True)
def _no_disk():
    """Bringing every little file to a busy disk takes longer than all the rest; test_state looks at it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "_to_disk", lambda path: None)
        yield


FIELDS = {
    "tokens": Field((2, 3)),
    "half": Field((5,), "float16"),
    "pixel": Field((4,), "int32"),
    "valid": Field((4,), "bool"),
    "members": Field((4, 0), "int32"),
}
NAMES = [f"scan {i}" for i in range(7)]


def arrays(ids, seed=0):
    rng = np.random.default_rng(seed)
    whole = {
        "tokens": rng.normal(size=(7, 2, 3)).astype(np.float32),
        "half": rng.normal(size=(7, 5)).astype(np.float32),
        "pixel": rng.integers(0, 9, (7, 4)).astype(np.int32),
        "valid": rng.random((7, 4)) > 0.5,
        "members": np.zeros((7, 4, 0), np.int32),
    }
    return {name: values[list(ids)] for name, values in whole.items()}


def opened(folder, **changes):
    given = {"identity": {"backbone": "b"}, "samples": NAMES, "fields": FIELDS} | changes
    # 54 bytes a sample: three of them per shard
    return store.open_store(folder, **given, shard_bytes=170)


def filled(folder):
    whole = opened(folder)
    for ids in store.missing(whole):
        store.write(whole, ids, arrays(ids))
    return whole


def test_what_is_written_is_read(tmp_path):
    whole = filled(tmp_path / "s")
    assert [path.name for path in sorted(whole.folder.iterdir())] == [
        "000000.h5", "000001.h5", "000002.h5", "digests.json", "manifest.json"
    ]  # fmt: skip
    expected = arrays(range(7))
    for name in FIELDS:
        column = store.column(whole, name)
        assert column.shape == (7, *FIELDS[name].shape)
        tolerance = {"atol": 2e-3} if name == "half" else {"atol": 0}
        np.testing.assert_allclose(column[:].astype(float), expected[name].astype(float), rtol=0, **tolerance)
    assert store.column(whole, "half")[0:1].dtype == np.float32
    assert store.column(whole, "valid")[0].dtype == bool


@given(st.lists(st.integers(-7, 6), max_size=9), st.integers(-9, 9), st.integers(-9, 9))
def test_any_selection_is_numpys(tmp_path_factory, ids, start, stop):
    folder = tmp_path_factory.getbasetemp() / "selection"
    whole = filled(folder)
    column, expected = store.column(whole, "tokens"), arrays(range(7))["tokens"]
    np.testing.assert_array_equal(column[np.asarray(ids, int)], expected[np.asarray(ids, int)])
    np.testing.assert_array_equal(column[start:stop], expected[start:stop])


def test_only_what_is_missing_is_left_to_do(tmp_path):
    whole = opened(tmp_path / "s")
    assert [list(ids) for ids in store.missing(whole)] == [[0, 1, 2], [3, 4, 5], [6]]
    store.write(whole, range(3, 6), arrays(range(3, 6)))
    again = opened(tmp_path / "s")
    assert [list(ids) for ids in store.missing(again)] == [[0, 1, 2], [6]]
    with pytest.raises(InputError, match=r"000000\.h5: cannot be read .* delete it to have it made again"):
        store.column(again, "tokens")[0:4]
    np.testing.assert_array_equal(store.column(again, "tokens")[3:6], arrays(range(3, 6))["tokens"])


def test_an_interrupted_shard_leaves_no_file(tmp_path):
    whole = opened(tmp_path / "s")
    broken = arrays(range(3)) | {"valid": np.array([["x"] * 4] * 3, object)}
    with pytest.raises((TypeError, ValueError)):
        store.write(whole, range(3), broken | {"half": np.full((3, 5), "no")})
    assert [path.name for path in whole.folder.iterdir()] == ["manifest.json"]


def test_two_writers_agree(tmp_path):
    def fill():
        for ids in list(store.missing(opened(tmp_path / "s"))):
            store.write(opened(tmp_path / "s"), ids, arrays(ids))

    threads = [threading.Thread(target=fill) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(
        store.column(opened(tmp_path / "s"), "tokens")[:], arrays(range(7))["tokens"]
    )


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"identity": {"backbone": "other"}}, "identity"),
        ({"samples": NAMES[:-1]}, "samples"),
        ({"fields": {"tokens": Field((2, 4))}}, "fields"),
    ],
)
def test_another_store_in_the_folder_is_refused(tmp_path, change, named):
    filled(tmp_path / "s")
    with pytest.raises(InputError, match=f"holds another {named}"):
        opened(tmp_path / "s", **change)


@pytest.mark.parametrize("text", ["{", "[]", "\xff", "[" * 100_000])
def test_a_manifest_that_is_none_is_one_line(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match="not the manifest of a store"):
        opened(tmp_path)


def test_a_manifest_with_a_hostile_number_is_refused(tmp_path):
    filled(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    for value in (0, -1, True, "3", None):
        (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"per_shard": value}))
        with pytest.raises(InputError, match="per_shard"):
            opened(tmp_path)


def test_wrong_arrays_are_a_mistake_of_the_caller(tmp_path):
    whole = opened(tmp_path / "s")
    with pytest.raises(ValueError, match="found fields"):
        store.write(whole, range(3), {"tokens": np.zeros((3, 2, 3))})
    with pytest.raises(ValueError, match=r"tokens: found \(2, 2, 3\)"):
        store.write(whole, range(3), arrays(range(3)) | {"tokens": np.zeros((2, 2, 3))})
    with pytest.raises(InputError, match="no field 'token'"):
        store.column(whole, "token")
    with pytest.raises(InputError, match="of type complex64"):
        opened(tmp_path / "t", fields={"tokens": Field((1,), "complex64")})


def damage_link(path, other):
    with h5py.File(path, "a") as file:
        del file["tokens"]
        file["tokens"] = h5py.ExternalLink(str(other), "secret")


def damage_soft(path, other):
    with h5py.File(path, "a") as file:
        del file["tokens"]
        file["tokens"] = h5py.SoftLink("/half")


def damage_virtual(path, other):
    with h5py.File(path, "a") as file:
        del file["tokens"]
        layout = h5py.VirtualLayout((3, 2, 3), "f4")
        layout[:] = h5py.VirtualSource(str(other), "secret", (3, 2, 3))
        file.create_virtual_dataset("tokens", layout)


def damage_external(path, other):
    with h5py.File(path, "a") as file:
        del file["tokens"]
        file.create_dataset("tokens", (3, 2, 3), "f4", external=[(str(other), 0, 72)])


def damage_shape(path, other):
    with h5py.File(path, "a") as file:
        del file["tokens"]
        file["tokens"] = np.zeros((3, 2, 4), np.float32)


def damage_group(path, other):
    with h5py.File(path, "a") as file:
        del file["tokens"]
        file.create_group("tokens")


def damage_bytes(path, other):
    data = bytearray(path.read_bytes())
    place = data.find(arrays(range(3))["tokens"][1].tobytes())
    data[place] ^= 1
    path.write_bytes(bytes(data))


def damage_tail(path, other):
    path.write_bytes(path.read_bytes()[:100])


def damage_filter(path, other):
    with h5py.File(path, "a") as file:
        values = file["tokens"][:]
        del file["tokens"]
        file.create_dataset("tokens", data=values, chunks=(1, 2, 3), compression="gzip")


def damage_chunks(path, other):
    with h5py.File(path, "a") as file:
        values = file["tokens"][:]
        del file["tokens"]
        file.create_dataset("tokens", data=values, chunks=(3, 2, 3), fletcher32=True)


def damage_more(path, other):
    with h5py.File(path, "a") as file:
        file["more"] = np.zeros(3)


def damage_attribute(path, other):
    with h5py.File(path, "a") as file:
        file.attrs["more"] = "x"


def damage_number(path, other):
    with h5py.File(path, "a") as file:
        file["tokens"][1, 1, 1] = np.nan


DAMAGES = [
    damage_link, damage_soft, damage_virtual, damage_external,
    damage_shape, damage_group, damage_bytes, damage_tail,
]  # fmt: skip
OURS_ONLY = [damage_filter, damage_chunks, damage_more, damage_attribute, damage_number]


def signed(whole):
    """The list of digests of the shards as they are now: what somebody who means harm would write."""
    known = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in whole.folder.glob("*.h5")}
    (whole.folder / "digests.json").write_text(json.dumps(known))


def damaged(tmp_path, damage):
    whole = filled(tmp_path / "s")
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file["secret"] = np.ones((3, 2, 3), np.float32)
    damage(whole.path(0), other)
    return whole


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("resigned", [False, True])
def test_a_shard_that_is_not_what_it_should_be_is_one_line(tmp_path, damage, resigned):
    whole = damaged(tmp_path, damage)
    if resigned:
        signed(whole)
    with pytest.raises(InputError, match=r"000000\.h5: ") as caught:
        store.column(whole, "tokens")[0:3]
    assert "\n" not in str(caught.value)
    assert resigned == ("digest" not in str(caught.value))


def test_a_damaged_shard_is_left_to_do(tmp_path):
    whole = damaged(tmp_path, damage_bytes)
    assert store.missing(opened(tmp_path / "s")) == []
    assert store.missing(opened(tmp_path / "s"), verify=True) == [range(3)]
    store.write(whole, range(3), arrays(range(3)))
    assert store.missing(opened(tmp_path / "s"), verify=True) == []
    np.testing.assert_array_equal(store.column(whole, "tokens")[:], arrays(range(7))["tokens"])


def test_damage_while_it_is_open_is_noticed(tmp_path):
    whole = filled(tmp_path / "s")
    column = store.column(whole, "tokens")
    column[0:1]
    damage_bytes(whole.path(0), None)
    with pytest.raises(InputError, match="digest"):
        column[0:1]


def test_a_shard_without_a_digest_is_left_to_do(tmp_path):
    whole = filled(tmp_path / "s")
    (tmp_path / "s" / "digests.json").unlink()
    assert len(store.missing(whole)) == 3
    with pytest.raises(InputError, match="digest"):
        store.column(whole, "tokens")[0]


class TestExamine:
    """Each looks at a store in a process of its own."""

    def test_a_good_store_comes_through(self, tmp_path):
        filled(tmp_path / "s")
        found = store.examine(tmp_path / "s")
        assert found.samples == tuple(NAMES)
        assert dict(found.fields) == FIELDS
        assert found.identity == {"backbone": "b"}
        np.testing.assert_array_equal(store.column(found, "tokens")[:], arrays(range(7))["tokens"])
        # what changes afterwards is not what was looked at
        damage_number(found.path(0), None)
        signed(found)
        with pytest.raises(InputError, match="digest"):
            store.column(found, "tokens")[0]

    @pytest.mark.parametrize("damage", [damage_link, damage_external, damage_tail, *OURS_ONLY])
    def test_a_hostile_one_does_not(self, tmp_path, damage):
        signed(damaged(tmp_path, damage))
        with pytest.raises(InputError, match=r"000000\.h5: |not a readable store") as caught:
            store.examine(tmp_path / "s")
        assert "\n" not in str(caught.value)

    def test_nor_one_that_is_not_finished(self, tmp_path):
        opened(tmp_path / "s")
        with pytest.raises(InputError, match="cannot be read"):
            store.examine(tmp_path / "s")

    def test_nor_one_that_takes_too_long_or_too_much(self, tmp_path):
        filled(tmp_path / "s")
        with pytest.raises(InputError, match="within 0 s"):
            store.examine(tmp_path / "s", seconds=0.01)
        with pytest.raises(InputError, match=r"ended with status|bytes to be looked at|not a readable"):
            store.examine(tmp_path / "s", memory=0)

    def test_nor_one_whose_process_dies(self, tmp_path, monkeypatch):
        filled(tmp_path / "s")
        monkeypatch.setattr(storecheck, "_COMMAND", ("-c", "import os; os.kill(os.getpid(), 9)"))
        with pytest.raises(InputError, match="ended with status -9"):
            store.examine(tmp_path / "s")

    @pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
    def test_nor_one_whose_shard_is_no_file(self, tmp_path, kind):
        whole = filled(tmp_path / "s")
        path = whole.path(1)
        path.rename(tmp_path / "shard")
        {"link": lambda: path.symlink_to(tmp_path / "shard"), "pipe": lambda: os.mkfifo(path),
         "folder": path.mkdir}[kind]()  # fmt: skip
        with pytest.raises(InputError, match=r"000001\.h5"):
            store.examine(tmp_path / "s")


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2}, {"samples": "x"}, {"samples": [1]}, {"identity": None}, {"fields": {}},
        {"fields": {"../x": [[1], "float32"]}}, {"fields": {"x": [[1 << 40], "float32"]}},
        {"fields": {"x": [[1 << 30] * 3, "float32"]}}, {"fields": {"x": [[-1], "float32"]}},
        {"fields": {"x": [[1], "object"]}}, {"fields": {"x": [[True], "float32"]}}, {"per_shard": 0},
    ],
)  # fmt: skip
def test_a_manifest_that_no_store_has_is_refused(tmp_path, change):
    filled(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=r"manifest\.json: "):
        store.load(tmp_path)


def test_shards_hold_whole_batches(tmp_path):
    whole = store.open_store(tmp_path, {}, NAMES, {"x": Field((1,))}, shard_bytes=20, batch=2)
    assert [list(ids) for ids in store.missing(whole)] == [[0, 1, 2, 3], [4, 5, 6]]
    few = store.open_store(tmp_path / "few", {}, NAMES, {"x": Field((1,))}, batch=2, batches=1)
    assert few.per_shard == 2


def test_digests_tell_content_from_layout():
    assert store.digest({"a": 1, "b": [2]}) == store.digest({"b": [2], "a": 1})
    assert store.digest({"a": 1}) != store.digest({"a": 2})
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert store.content_digest(x) == store.content_digest(np.asfortranarray(x))
    different = [x, x.T, x.astype(np.float64), x.reshape(3, 2), x + 1, None, np.zeros((0, 3), np.float32)]
    assert len({store.content_digest(a) for a in different}) == len(different)
    assert store.content_digest(x, None) != store.content_digest(None, x)
