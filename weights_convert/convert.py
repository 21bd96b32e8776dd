"""Recognise a checkpoint, check every key, write Flax parameters."""

from __future__ import annotations

import dataclasses
import os
import re
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from muscjax.backbones import params
from muscjax.errors import InputError
from weights_convert import clip, dino, infer, point_mae
from weights_convert.readers import open_checkpoint
from weights_convert.rules import Layout, Rule, Shape

_TABLES = {"dino": dino, "clip": clip, "point_mae": point_mae}
_TABLE_OF = {"dino": "dino", "dinov2": "dino", "deit": "dino", "clip": "clip", "point_mae": "point_mae"}
FAMILIES = tuple(_TABLE_OF)
# Of the weights as their authors published them.
LICENSES = {
    "dino": "Apache-2.0",
    "dinov2": "Apache-2.0",
    "deit": "Apache-2.0",
    "clip": "MIT",
    "point_mae": "MIT",
}


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which tensor goes where, every key accounted for."""

    family: str
    layout: str
    spec: params.Spec
    targets: Mapping[str, tuple[tuple[str, Rule], ...]]  # target -> (source key, row), in order of parts
    ignored: tuple[str, ...]  # keys that are read past, as the layout documents


@dataclasses.dataclass(frozen=True)
class Report:
    """What a conversion did."""

    path: Path
    family: str
    layout: str
    spec: params.Spec
    parameters: int
    ignored: tuple[str, ...]
    source: str
    source_sha256: str
    license: str


def convert(
    src: str | os.PathLike,
    dest: str | os.PathLike,
    *,
    family: str | None = None,
    source: str | None = None,
    license: str | None = None,
    expect: Mapping[str, Any] | None = None,
    **overrides: Any,
) -> Report:
    """Convert a published checkpoint to the safetensors file that the backbones load.

    Args:
      src: ``.pth`` (torch, the ``convert`` extra) or safetensors; the content decides.
      dest: written under a temporary name and renamed; left alone when anything is wrong.
      family: one of :data:`FAMILIES`; None: recognised from the keys.
      source: where the file comes from, for the header; None: its name.
      license: of the weights, for the header; None: the family's published one.
      expect: fields of the spec that must come out so.
      overrides: fields of the spec that no tensor tells, such as ``heads`` or ``eps``.

    Raises:
      InputError: unreadable, unknown, not what is expected, or keys missing, unexpected or of another
        shape: all of them are named.
    """
    src, dest = Path(src), Path(dest)
    if dest.is_dir() or (dest.exists() and src.exists() and dest.samefile(src)):
        raise InputError(f"{dest}: expected a file to write, other than the source")
    checkpoint = open_checkpoint(src)
    chosen = plan(checkpoint.shapes, family=family, path=src, **overrides)
    for field, value in (expect or {}).items():
        if getattr(chosen.spec, field) != value:
            raise InputError(f"{src}: {field} is {getattr(chosen.spec, field)}, expected {value}")
    digest = params.sha256(src)
    tensors = {
        target: _assemble([(rule, checkpoint.read(key)) for key, rule in parts])
        for target, parts in chosen.targets.items()
    }
    report = Report(
        path=dest,
        family=chosen.family,
        layout=chosen.layout,
        spec=chosen.spec,
        parameters=sum(a.size for a in tensors.values()),
        ignored=(*chosen.ignored, *checkpoint.others),
        source=source or src.name,
        source_sha256=digest,
        license=license or LICENSES[chosen.family],
    )
    fields = {
        "layout": report.layout,
        "source": report.source,
        "source_sha256": digest,
        "license": report.license,
        "converter": f"muscjax {_version()}",
    }
    params.save(dest, tensors, params.header(chosen.spec, **fields))
    return report


def plan(
    shapes: Mapping[str, Shape],
    *,
    family: str | None = None,
    path: Path = Path("checkpoint"),
    **overrides: Any,
) -> Plan:
    """Match every key of a checkpoint with the table of its family; no tensor is read.

    Raises:
      InputError: the layout is not recognised, is another family's, or keys are missing, unexpected or
        of another shape; one line names every one of them.
    """
    if family is not None and family not in _TABLE_OF:
        raise InputError(f"--family {family}: expected one of {', '.join(FAMILIES)}")
    table, layout, names = _recognise(shapes, path)
    matches = {key: layout.match(name) for key, name in names.items()}
    found = {
        rule.target.format(block): target
        for key, hits in matches.items()
        for rule, block in hits
        if rule.part is None and (target := rule.op.target(shapes[key])) is not None
    }
    depth = _depth(layout, matches)
    family = _family(family, table, found, names, depth, path)
    stated = {name: value for name, value in overrides.items() if value is not None}
    try:
        if table == "point_mae":
            spec: params.Spec = infer.point_spec(found, depth, overrides=stated)
        else:
            tower = any(layout.ignores(name) and "position_ids" not in name for name in names.values())
            spec = infer.image_spec(
                family,
                dict(layout.spec),
                found,
                depth,
                projected=family == "clip" and (layout.name == "openai" or tower),
                text=_text_projection(shapes),
                overrides=stated,
            )
            spec = dataclasses.replace(spec, **(infer.beside(path, layout.name, spec) | stated))
    except TypeError as error:
        raise InputError(f"{path}: {error}") from None
    spec = params.checked(dataclasses.asdict(spec), type(spec), f"{path}: cannot be converted")
    return _check(path, family, layout, spec, shapes, names, matches)


def _check(path, family, layout: Layout, spec, shapes, names, matches) -> Plan:
    wanted = params.shapes(spec)
    prefix = _common_prefix(names, matches)
    expected: dict[str, list[tuple[Rule, str]]] = {}  # source name -> rows that read it, with their target
    for rule in layout.rules:
        for block in range(spec.depth) if "{}" in rule.target else (None,):
            target = rule.target.format(block)
            if target in wanted:
                expected.setdefault(rule.key(block), []).append((rule, target))
    by_name = {name: key for key, name in reversed(names.items())}
    missing = [prefix + name for name in expected if name not in by_name]
    ignored = [key for key, name in names.items() if name not in expected and layout.ignores(name)]
    unexpected = [
        key
        for key, name in names.items()
        if by_name[name] != key or (name not in expected and not layout.ignores(name))
    ]
    misshapen, targets = [], {}
    for name, uses in expected.items():
        key = by_name.get(name)
        for rule, target in uses:
            part = wanted[target] if rule.part is None else (*wanted[target][:-1], wanted[target][-1] // 3)
            need = rule.op.source(part)
            if key is not None and tuple(shapes[key]) != need:
                line = f"{key} has shape {tuple(shapes[key])}, expected {need}"
                if line not in misshapen:
                    misshapen.append(line)
            elif key is not None:
                targets.setdefault(target, []).append((key, rule))
    problems = [
        f"{len(lines)} {what}: {params.listed(lines).replace('; ', ', ')}"
        for what, lines in (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen))
        if lines
    ]
    if problems:
        raise InputError(
            f"{path}: not a whole {family} checkpoint ({layout.name} layout): {'; '.join(problems)}"
        )
    ordered = {
        target: tuple(sorted(parts, key=lambda use: use[1].part or 0)) for target, parts in targets.items()
    }
    return Plan(family, layout.name, spec, ordered, tuple(ignored))


def _recognise(shapes: Mapping[str, Shape], path: Path) -> tuple[str, Layout, dict[str, str]]:
    """The table and layout that read the most keys, and each key without the family's prefixes."""
    best: tuple[int, str, Layout, dict[str, str]] | None = None
    for table, module in _TABLES.items():
        names = {key: _strip(key, module.PREFIXES) for key in shapes}
        for layout in module.LAYOUTS:
            hits = [key for key, name in names.items() if layout.match(name)]
            blocks = any("{}" in rule.target for key in hits for rule, _ in layout.match(names[key]))
            score = len(hits) + (layout.name == "timm-registers" and _square(shapes, names))
            if blocks and (best is None or score > best[0]):
                best = (score, table, layout, names)
    if best is None:
        shown = ", ".join(list(shapes)[:5])
        raise InputError(f"{path}: not a checkpoint of {', '.join(FAMILIES)} (its keys begin {shown})")
    return best[1:]


def _square(shapes: Mapping[str, Shape], names: Mapping[str, str]) -> bool:
    """timm's registers come with positions for the patches alone."""
    rows = [shapes[key][1] for key, name in names.items() if name == "pos_embed" and len(shapes[key]) == 3]
    return bool(rows) and round(rows[0] ** 0.5) ** 2 == rows[0] and "reg_token" not in names.values()


def _text_projection(shapes: Mapping[str, Shape]) -> int | None:
    """Channels that CLIP's two towers share, as the text tower has them."""
    for key, axis in (("text_projection.weight", 0), ("text_projection", 1)):
        if len(shapes.get(key, ())) == 2:
            return shapes[key][axis]
    return None


def _family(stated: str | None, table: str, found, names, depth: int, path: Path) -> str:
    if table != "dino":
        guess = table
    elif sum(name.endswith((".scale1", ".scale2")) for name in found) >= depth:
        guess = "dinov2"
    elif any(re.fullmatch(r"(head|classifier)\.(weight|bias)", name) for name in names.values()):
        guess = "deit"
    else:
        guess = "dino"
    if stated is not None and _TABLE_OF[stated] != table:
        raise InputError(f"{path}: the keys are those of {guess}, expected {stated}")
    return stated or guess


def _depth(layout: Layout, matches) -> int:
    """Blocks of which at least half of the rows are there; a misnumbered key does not add one."""
    counts = Counter(block for hits in matches.values() for _, block in hits if block is not None)
    half = sum("{}" in rule.target and "scale" not in rule.target[-7:] for rule in layout.rules) / 2
    return max((block + 1 for block, count in counts.items() if count >= half), default=1)


def _common_prefix(names: Mapping[str, str], matches) -> str:
    prefixes = Counter(key.removesuffix(name) for key, name in names.items() if matches[key])
    return prefixes.most_common(1)[0][0] if prefixes else ""


def _strip(key: str, prefixes: tuple[str, ...]) -> str:
    for prefix in prefixes:
        key = re.sub(rf"^(?:{prefix})", "", key)
    return key


def _assemble(parts: list[tuple[Rule, np.ndarray]]) -> np.ndarray:
    arrays = [rule.op.apply(array) for rule, array in parts]
    return np.ascontiguousarray(arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=-1))


def _version() -> str:
    try:
        return version("muscjax")
    except PackageNotFoundError:
        return "unknown"
