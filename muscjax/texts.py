"""Small files of text that others may have written: JSON and CSV, bounded and checked before use."""

from __future__ import annotations

import csv
import io
import json
import stat
from pathlib import Path
from typing import Any

from muscjax.errors import InputError

MOST_TEXT = 1 << 26  # bytes of a table or record: more than a million scans
_MOST_COLUMNS = 1000
MOST_SETTINGS = 1 << 16  # bytes of a file of settings, which are a handful of numbers


def read_bytes(path: Path, *, most: int = MOST_TEXT) -> bytes:
    """The whole of a regular file of at most ``most`` bytes.

    Raises:
      InputError: no such file, another kind of file (a pipe would be waited for), a larger one, or one that
        the system does not let us read.
    """
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):
            raise InputError(f"{path}: cannot be read (no regular file)")
        if about.st_size > most:
            raise InputError(f"{path}: found {about.st_size} bytes, expected at most {most}")
        with path.open("rb") as file:
            return file.read(about.st_size)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # a name with a NUL is a ValueError
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def read_json(path: Path, *, most: int = MOST_TEXT) -> Any:
    """The value of a JSON file.

    Raises:
      InputError: as ``read_bytes``, or no JSON in UTF-8.
    """
    content = read_bytes(path, most=most)
    try:
        return json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: not a JSON file ({reason})") from None


def read_record(path: Path, *, most: int = MOST_TEXT) -> dict[str, Any]:
    """The JSON object of a file; InputError as ``read_json``, or where it is another value."""
    found = read_json(path, most=most)
    if not isinstance(found, dict):
        raise InputError(f"{path}: found {type(found).__name__}, expected a JSON object")
    return found


def read_table(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """The columns of a CSV file with a header, and its rows by column, each with its line number.

    Missing values are "", and values beyond the header's columns are left out.

    Raises:
      InputError: as ``read_bytes``, or no CSV in UTF-8.
    """
    try:
        text = io.StringIO(read_bytes(path).decode("utf-8-sig"), newline="")
        reader = csv.DictReader(text, skipinitialspace=True)
        columns = list(reader.fieldnames or ())
        if len(columns) > _MOST_COLUMNS:  # each row would have as many values
            raise InputError(f"{path}: found {len(columns)} columns, expected at most {_MOST_COLUMNS}")
        rows = [(reader.line_num, {name: row.get(name) or "" for name in columns}) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: cannot be read as CSV ({reason})") from None
    return columns, rows
