"""muscjax.texts and muscjax.errors: bounded, regular, one line."""

from __future__ import annotations

import os
import pickle

import pytest

from muscjax import texts
from muscjax.errors import InputError, one_line, shown


def test_a_message_is_one_line_whatever_is_in_it():
    hostile = "a\nb\r\x1b[31m\u202e\u2028\udcff.png"
    error = InputError(f"{hostile}: bad")
    assert str(error).isprintable()
    assert str(error).startswith(r"a\nb\r\x1b[31m")
    assert str(InputError(str(error))) == str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert one_line("Größe 3×4 µm") == "Größe 3×4 µm"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.5, "0.5"),
        ("x" * 200, "'" + "x" * 78 + "…"),
        (1 << 20000, "a number of 20001 bits"),
        ([[1]] * 9, "list of 9"),
        ({}, "dict of 0"),
        (None, "None"),
    ],
    ids=range(6),
)
def test_values_are_shown_short(value, text):
    assert shown(value) == text


def test_only_small_regular_files_are_read(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"{}")
    assert texts.read_bytes(path) == b"{}"
    assert texts.read_record(path) == {}
    with pytest.raises(InputError, match="found 2 bytes, expected at most 1"):
        texts.read_bytes(path, most=1)
    with open(path, "wb") as file:
        file.truncate(1 << 40)  # a hole: no disk, but nothing to hold in memory
    with pytest.raises(InputError, match=f"found {1 << 40} bytes, expected at most {texts.MOST_TEXT}"):
        texts.read_json(path)
    for name in ("folder", "pipe"):
        place = tmp_path / name
        place.mkdir() if name == "folder" else os.mkfifo(place)
        with pytest.raises(InputError, match="no regular file"):
            texts.read_bytes(place)
    with pytest.raises(InputError, match="no such file"):
        texts.read_bytes(tmp_path / "none")
    with pytest.raises(InputError, match="null"):
        texts.read_bytes(tmp_path / "a\0b")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"[" * 100000, "not a JSON file"),
        (b"9" * 5000, "not a JSON file"),
        (b"\xff", "not a JSON file"),
        (b"[]", "found list, expected a JSON object"),
    ],
)
def test_what_is_no_record(tmp_path, content, text):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=text):
        texts.read_record(path)


def test_a_table_has_all_its_columns_in_every_row(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes("\ufeffpath, label\na,1,more\n\nb\n".encode())
    assert texts.read_table(path) == (
        ["path", "label"],
        [(2, {"path": "a", "label": "1"}), (4, {"path": "b", "label": ""})],
    )
    path.write_bytes(b"," * 5000 + b"\n" + b"x\n" * 5000)
    with pytest.raises(InputError, match="found 5001 columns, expected at most 1000"):
        texts.read_table(path)
    path.write_bytes(b'path\n"' + b"x" * 200000)
    with pytest.raises(InputError, match="cannot be read as CSV"):
        texts.read_table(path)
