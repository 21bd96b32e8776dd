"""Tables, records and settings: CSV, JSON, TOML and YAML that decide what is read and what is believed."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from muscjax import compare, config, evaluate
from muscjax.ablate import runner
from muscjax.backbones import fetch
from muscjax.compare import runs
from muscjax.datasets import Scan, open_dataset
from muscjax.errors import InputError
from muscjax.requests import Request, recorded
from tests.fuzz.clouds import YAMLS
from tests.fuzz.engine import Reader
from tests.fuzz.images import saved, tiff

NAMES = ("a", "b", "deep/c")
HOSTILE = (
    "../../a.png",
    "/etc/passwd",
    "a\0b",
    "",
    ".",
    "..",
    "=1+1",
    "\x1b[31m",
    "\u202e",
    "rgb/xyz",
    "a" * 5000,
)
CELLS = st.one_of(
    st.sampled_from(["a.png", "deep/c.png", "0", "1", "good", "nan", "inf", "1e999", "0x1", "1_0", *HOSTILE]),
    st.text(max_size=12),
)


def picture() -> bytes:
    return saved(np.full((9, 9, 3), 7, np.uint8), "PNG")


def plain_folder(folder: Path) -> None:
    for name in NAMES:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / f"{name}.png").write_bytes(picture())


def read_labels(path: Path) -> None:
    (found,) = open_dataset(path.parent, layout="folder")
    assert len(found.scans) == len(NAMES)
    assert all(scan.label in (0, 1, None) for scan in found.scans)
    assert all(line.isprintable() for line in found.problems), found.problems


def visa(folder: Path) -> None:
    for kind, count in (("Normal", 2), ("Anomaly", 1)):
        place = folder / "candle" / "Data" / "Images" / kind
        place.mkdir(parents=True, exist_ok=True)
        for i in range(count):
            (place / f"{i:04d}.JPG").write_bytes(picture())


def read_split(path: Path) -> None:
    (found,) = open_dataset(path.parents[1], layout="visa", category="candle")
    assert all(scan.defect in ("Normal", "Anomaly") for scan in found.scans)
    assert all(line.isprintable() for line in found.problems), found.problems


def candies(folder: Path) -> None:
    place = folder / "test_public" / "data"
    place.mkdir(parents=True, exist_ok=True)
    for i in range(2):
        (place / f"{i:02d}_image_0.png").write_bytes(picture())


def read_metadata(path: Path) -> None:
    (found,) = open_dataset(path.parents[2], layout="eyecandies", modality="image")
    assert all(scan.label in (0, 1, None) for scan in found.scans)
    assert all(line.isprintable() for line in found.problems), found.problems


SCANS = tuple(Scan("set", "", "", name, image=Path("/nowhere", f"{name}.png")) for name in ("a", "b", "c"))


def read_scores(path: Path) -> None:
    problems: list[str] = []
    found = evaluate.read_scores(path, SCANS, problems)
    assert len(found) + len(problems) == len(SCANS)
    assert all(np.isfinite(value) for value in found.values())
    if problems:
        raise evaluate.Unusable(problems)


RECORD = {
    "request": {"path": "data", "out": "out", "layout": "folder", "clean": True, "units": "auto"},
    "config": {"preset": "paper", "ipg": {"groups": 12}},
    "versions": {"jax": "0"},
    "device": {"platform": "cpu"},
}


def a_run(folder: Path) -> None:
    for name in NAMES:
        path = folder / "maps" / f"set/{name}.tiff"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tiff(np.ones((4, 4), np.float32)))
    (folder / "scores.csv").write_bytes(TABLE)
    (folder / "run.json").write_text(json.dumps(RECORD))


TABLE = b"path,rank,score,score_before_rscon,label\n" + b"".join(
    f"x/set/{name}.png,{i},0.{i},0.5,{i % 2}\n".encode() for i, name in enumerate(NAMES)
)


def read_run(path: Path) -> None:
    """What ``compare`` asks of a run's table and record."""
    run = compare.read_run(path.parent)
    names = sorted(run.names)
    rows = runs.rows_of_scans(run, names, {})
    for name in names:
        assert np.isfinite(runs.score_of(run, rows[name]))
        assert runs.label_of(rows[name], None) in (0, 1, None)
    notes: list[str] = []
    assert runs.truth_scans(run, None, notes) == []
    list(runs.differences(run.record, {"request": {}}))


def read_record(path: Path) -> None:
    request, settings = recorded(path.parent)
    for field in dataclasses.fields(Request):
        value = getattr(request, field.name)
        assert value is None or isinstance(value, (str, bool, Path)), field.name
    check_config(settings)


def check_config(settings: config.Config) -> None:
    hash(settings)
    assert config.from_tree(dataclasses.asdict(settings), "again") == settings
    for stage in dataclasses.fields(settings):
        values = getattr(settings, stage.name)
        for field in () if stage.name == "preset" else dataclasses.fields(values):
            value = getattr(values, field.name)
            if isinstance(value, (int, float)):
                assert abs(value) < 2**63, (stage.name, field.name, value)


def read_config(path: Path) -> None:
    check_config(config.from_toml(path))


def read_assignments(path: Path) -> None:
    """Lines as ``--set`` has them; what they say is named instead of a file."""
    try:
        check_config(
            config.override(config.released(), *path.read_bytes().decode("utf-8", "replace").split("\n"))
        )
    except InputError as error:
        raise InputError(f"{path.name}: {error}") from None


def read_ledger(path: Path) -> None:
    found = fetch.recorded("key")
    assert found is None or isinstance(found, str)


def beside_ledger(folder: Path) -> None:
    os.environ["MUSCJAX_CACHE"] = str(folder)  # of this child process


def read_row(path: Path) -> None:
    found = runner._kept(path)
    assert np.isfinite(found["seconds"])
    for metric in found["values"]:
        drawn = runner._resamples(found, metric)
        runner._interval(drawn)


ANYTHING = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.floats(),
        st.text(max_size=9),
        st.sampled_from([*HOSTILE, 10**400, "image", "folder", "paper"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)


def spoiled(valid: dict) -> st.SearchStrategy[bytes]:
    """The record with anything in place of one of its values, or of all of it; and depths no parser likes."""

    @st.composite
    def made(draw) -> bytes:
        found = json.loads(json.dumps(valid))
        place = found
        while True:
            key = draw(st.sampled_from(sorted(place)))
            if not isinstance(place[key], dict) or not place[key] or draw(st.booleans()):
                break
            place = place[key]
        place[key] = draw(ANYTHING)
        try:
            return json.dumps(found).encode("utf-8", "surrogatepass")
        except ValueError:
            return b"9" * 5000

    extreme = [
        b"[" * 50000,
        b'{"a":' * 50000,
        b"9" * 5000,
        b"1e99999",
        b"null",
        b'"x"',
        b"NaN",
        b"\xff",
        b"[]",
    ]
    whole = ANYTHING.map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass"))
    return st.one_of(made(), made(), made(), whole.filter(bool), st.sampled_from(extreme))


def tables(*columns: str) -> st.SearchStrategy[bytes]:
    """Tables with these columns (or others) and any cells, quoted or not."""
    header = st.one_of(
        st.just(list(columns)), st.lists(st.sampled_from([*columns, "", "x", columns[0].upper()]), max_size=6)
    )
    quoted = CELLS.map(
        lambda cell: '"' + cell.replace('"', '""') + '"' if "," in cell or "\n" in cell else cell
    )
    rows = st.lists(st.lists(quoted, max_size=7), max_size=6)
    end = st.sampled_from(["\n", "\r\n", "\r", "\n\n"])
    text = st.tuples(header, rows, end).map(lambda t: t[2].join(",".join(row) for row in [t[0], *t[1]]))
    extreme = st.sampled_from(
        [",".join(columns) + '\n"' + "x" * 200000, ",".join(columns) + "\n" + "," * 99999]
    )
    return st.one_of(text, text, text, extreme).map(lambda t: t.encode("utf-8", "surrogatepass"))


@st.composite
def settings(draw) -> bytes:
    """TOML with the stages' and fields' names and values of any kind."""
    stages = dataclasses.asdict(config.paper())
    stages.pop("preset")
    value = st.sampled_from(
        [
            "true",
            "-1",
            "0",
            "1",
            "2.5",
            "inf",
            "-inf",
            "nan",
            "1e400",
            "9" * 30,
            "9" * 5000,
            "0x" + "f" * 500,
            '"none"',
            '"paper"',
            "[]",
            "[1, 3, 5]",
            "[[1]]",
            "[1.5, nan]",
            "{}",
            "1979-05-27",
            "[" * 3000,
            '"\\u001b"',
        ]
    )
    lines = []
    if draw(st.booleans()):
        lines.append(f"preset = {draw(value)}")
    for stage in draw(st.lists(st.sampled_from([*stages, "x", '"\\n"']), max_size=4, unique=True)):
        lines.append(f"[{stage}]")
        names = list(stages.get(stage, {"y": 0}))
        for name in draw(st.lists(st.sampled_from(names), max_size=4, unique=True)):
            lines.append(f"{name} = {draw(value)}")
    return "\n".join(lines).encode()


def _toml() -> bytes:
    return (
        b'preset = "paper"\n[ipg]\ngroups = 12\ngroup_size = 8\ninitial_size = 5\n[snamd]\ndegrees = [1, 3]\n'
    )


def _readers() -> list[Reader]:
    labels = b"path,label\n" + b"".join(f"{n}.png,{i % 2}\n".encode() for i, n in enumerate(NAMES))
    split = b"object,split,label,image,mask\n" + b"".join(
        f"candle,test,{label},candle/Data/Images/{folder}/{i:04d}.JPG,\n".encode()
        for label, folder, i in (("normal", "Normal", 0), ("normal", "Normal", 1), ("anomaly", "Anomaly", 0))
    )
    row = {"seconds": 1.5, "values": {"auroc_cls": 91.0}, "resamples": {"auroc_cls": [90.0, None, 92.5]}}
    record = json.dumps(RECORD).encode()
    sets = b"ipg.groups=12\nsnamd.degrees=[1,3]\ncae.combine=sum\nrun.seed=3"
    return [
        Reader(
            "labels.csv",
            "labels.csv",
            read_labels,
            [labels],
            plain_folder,
            tables("path", "label"),
            tokens=(b"/../", b"\0", b'"', b",good\n"),
        ),
        Reader(
            "VisA split",
            "split_csv/1cls.csv",
            read_split,
            [split],
            visa,
            tables("object", "split", "label", "image", "mask"),
        ),
        Reader(
            "Eyecandies metadata",
            "test_public/data/00_metadata.yaml",
            read_metadata,
            [b"anomalous: 1\nbumps: 0\ncolors: 1\n"],
            candies,
            YAMLS,
        ),
        Reader(
            "scores by evaluate",
            "scores.csv",
            read_scores,
            [b"path,score\n" + b"".join(f"x/set/{n}.png,0.{i}\n".encode() for i, n in enumerate("abc"))],
            strategy=tables("path", "score"),
        ),
        Reader(
            "scores by compare",
            "scores.csv",
            read_run,
            [TABLE],
            a_run,
            tables("path", "score", "rank", "label"),
        ),
        Reader("run.json by compare", "run.json", read_run, [record], a_run, spoiled(RECORD)),
        Reader("run.json by explain", "run.json", read_record, [record], strategy=spoiled(RECORD)),
        Reader(
            "configuration",
            "c.toml",
            read_config,
            [_toml()],
            strategy=settings(),
            tokens=(b"[[", b'"""', b"= nan", b"= inf", b"= true", b"[cae]", b"\\u0000"),
        ),
        Reader(
            "--set",
            "set.txt",
            read_assignments,
            [sets],
            tokens=(b"=nan", b"=inf", b"=[", b"cae.", b"\x1b[0m"),
        ),
        Reader(
            "ledger of hashes",
            "hashes.json",
            read_ledger,
            [b'{"key": "0123", "other": "4"}'],
            beside_ledger,
            spoiled({"key": "0123"}),
        ),
        Reader("row of ablate", "row.json", read_row, [json.dumps(row).encode()], strategy=spoiled(row)),
    ]


READERS = _readers()
