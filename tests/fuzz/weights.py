"""Weights: converted files, published safetensors and PyTorch checkpoints, and configurations beside them."""

from __future__ import annotations

import importlib.util
import io
import json
import pickle
import tempfile
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from safetensors.numpy import save

from muscjax.backbones import params
from muscjax.errors import InputError
from tests.checkpoints import small_checkpoint
from tests.fuzz.engine import Reader
from tests.fuzz.texts import spoiled
from weights_convert import convert

HEADER = {"weight": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}


def made() -> tuple[bytes, bytes, dict[str, np.ndarray]]:
    """A published checkpoint of one block, what it is converted to, and its arrays."""
    with tempfile.TemporaryDirectory() as place:
        source, arrays, _ = small_checkpoint(Path(place))
        converted = convert(source, Path(place, "converted.safetensors")).path
        return source.read_bytes(), converted.read_bytes(), arrays


def hugging_face(arrays: dict[str, np.ndarray]) -> bytes:
    """The same checkpoint under Hugging Face's names, whose configuration lies beside it."""
    found = {
        "embeddings.cls_token": arrays["cls_token"],
        "embeddings.position_embeddings": arrays["pos_embed"],
        "embeddings.patch_embeddings.projection.weight": arrays["patch_embed.proj.weight"],
        "embeddings.patch_embeddings.projection.bias": arrays["patch_embed.proj.bias"],
        "layernorm.weight": arrays["norm.weight"],
        "layernorm.bias": arrays["norm.bias"],
    }
    layer = "encoder.layer.0."
    for part in ("weight", "bias"):
        query, key, value = np.split(arrays[f"blocks.0.attn.qkv.{part}"], 3)
        for name, array in (("query", query), ("key", key), ("value", value)):
            found[f"{layer}attention.attention.{name}.{part}"] = np.ascontiguousarray(array)
        for name, source in (
            ("attention.output.dense", "attn.proj"),
            ("layernorm_before", "norm1"),
            ("layernorm_after", "norm2"),
            ("intermediate.dense", "mlp.fc1"),
            ("output.dense", "mlp.fc2"),
        ):
            found[f"{layer}{name}.{part}"] = arrays[f"blocks.0.{source}.{part}"]
    return save(found)


def read_converted(path: Path) -> None:
    params.metadata(path)
    loaded = params.load(path, kind="image")
    assert loaded.spec.width % loaded.spec.heads == 0


def read_published(path: Path) -> None:
    out = path.parents[1] / "out" / "converted.safetensors"
    report = convert(path, out)
    assert report.parameters > 0
    params.load(out, kind="image")


def read_beside(path: Path) -> None:
    """``path`` is the configuration; the checkpoint lies beside it."""
    out = path.parents[1] / "out" / "converted.safetensors"
    try:
        report = convert(path.parent / "model.safetensors", out)
    except InputError as error:
        if path.name in str(error):
            raise
        raise InputError(f"{path.name}: {error}") from None  # a spec that the two make together
    assert report.spec.heads >= 1
    params.load(out, kind="image")


def safetensors_file(header: Any, body: bytes, *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + body


def headers(metadata: dict[str, str]) -> st.SearchStrategy[bytes]:
    """Headers with lying lengths, shapes, offsets and types; with metadata that says anything."""
    number = st.sampled_from([0, 1, 2, 16, -1, 2**31, 10**9, 2**63, 2**64, 1.5, None, "2"])
    entry = st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "F16", "BF16", "F64", "I64", "F8_E4M3", "X", 4, None]),
            "shape": st.lists(number, max_size=4),
            "data_offsets": st.lists(number, max_size=3),
        }
    )
    names = st.sampled_from(["weight", "cls", "block_0.qkv.kernel", "block_999999999.qkv.kernel", "", "../x"])
    tensors = st.dictionaries(names, entry, max_size=3)
    about = st.one_of(
        st.none(),
        st.just(metadata),
        spoiled(json.loads(metadata["architecture"])).map(
            lambda text: metadata | {"architecture": text.decode("utf-8", "replace")}
        ),
        st.dictionaries(
            st.sampled_from([*metadata]), st.one_of(st.text(max_size=5), st.integers()), max_size=4
        ),
    )

    @st.composite
    def files(draw) -> bytes:
        head: dict[str, Any] = draw(tensors)
        said = draw(about)
        if said is not None:
            head["__metadata__"] = said
        length = draw(st.sampled_from([None, None, None, 2**63, 2**64 - 1, 10**8, 10**9, 0, 3]))
        content = draw(st.sampled_from([head, head, head, b"{" * 9000, b'{"a":' * 5000, b"[]", b"{}"]))
        return safetensors_file(content, bytes(draw(st.sampled_from([0, 16, 64]))), length=length)

    return files()


def architectures(converted: bytes) -> st.SearchStrategy[bytes]:
    """The converted file with one field of its architecture replaced; the tensors are as they were."""
    size = int.from_bytes(converted[:8], "little")
    head = json.loads(converted[8 : 8 + size])
    known = json.loads(head["__metadata__"]["architecture"])
    value = st.sampled_from(
        [
            0,
            1,
            -1,
            2,
            10**9,
            2**40,
            1e308,
            float("nan"),
            float("inf"),
            None,
            True,
            "4",
            [],
            [0],
            [[0]],
            {},
            [10**9],
        ]
    )

    @st.composite
    def files(draw) -> bytes:
        changed = known | draw(st.dictionaries(st.sampled_from([*known, "x"]), value, min_size=1, max_size=2))
        metadata = head["__metadata__"] | {"architecture": json.dumps(changed)}
        if draw(st.integers(0, 4)) == 0:
            metadata[draw(st.sampled_from([*metadata]))] = draw(st.text(max_size=4))
        return safetensors_file(head | {"__metadata__": metadata}, converted[8 + size :])

    return files()


def rezipped(content: bytes) -> bytes:
    """A damaged archive with the checksums of what is in it, so that damage reaches the unpickler."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w") as new:
        for entry in old.infolist():
            start = entry.header_offset
            name, extra = (int.from_bytes(content[start + at : start + at + 2], "little") for at in (26, 28))
            begin = start + 30 + name + extra
            new.writestr(entry.filename, content[begin : begin + entry.compress_size])
    return out.getvalue()


class _Storage:
    """Stands for a tensor's numbers: what the file claims to hold of them."""

    def __init__(self, key: str, count: int) -> None:
        self.key, self.count = key, count


class _Tensor:
    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __reduce__(self) -> Any:
        import torch

        return torch._utils._rebuild_tensor_v2, (*self.arguments, False, OrderedDict())


class _Runs:
    """A pickle that would run a program."""

    def __reduce__(self) -> Any:
        import os

        return os.system, ("true",)


def archive(obj: Any, *, compression: int = zipfile.ZIP_STORED, record: int = 64, extra: tuple = ()) -> bytes:
    """What ``torch.save`` writes, with tensors that may claim anything."""
    import torch

    class Pickler(pickle.Pickler):
        def persistent_id(self, found: Any) -> Any:
            if isinstance(found, _Storage):
                return ("storage", torch.FloatStorage, found.key, "cpu", found.count)
            return None

    data, out = io.BytesIO(), io.BytesIO()
    Pickler(data, 2).dump(obj)
    with zipfile.ZipFile(out, "w", compression) as file:
        file.writestr("archive/data.pkl", data.getvalue())
        file.writestr("archive/byteorder", "little")
        file.writestr("archive/data/0", bytes(record))
        file.writestr("archive/version", "3\n")
        for name in extra:
            file.writestr(name, "x")
    return out.getvalue()


def archives() -> st.SearchStrategy[bytes]:
    """Checkpoints with lying tensors, deep nests, code, members outside of the archive and bombs."""
    number = st.sampled_from([0, 1, 4, 16, 10**9, 2**40, 2**62, -1])
    sizes = st.lists(number, max_size=3).map(tuple)

    @st.composite
    def files(draw) -> bytes:
        tensor = _Tensor(
            _Storage(draw(st.sampled_from(["0", "1", "../0", ""])), draw(number)),
            draw(number),
            draw(sizes),
            draw(sizes),
        )
        nest: Any = {"w": tensor}
        for _ in range(draw(st.sampled_from([0, 1, 200]))):
            nest = {"model": nest}
        found = draw(
            st.sampled_from([nest, nest, nest, _Runs(), {"w": _Runs()}, [], {"model": {}}, {1: tensor}])
        )
        return archive(
            found,
            compression=draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])),
            record=draw(st.sampled_from([0, 64, 1 << 20])),
            extra=draw(st.sampled_from([(), (), ("../../evil",), ("archive/constants.pkl",), ("/abs",)])),
        )

    return files()


def pth(arrays: dict[str, np.ndarray]) -> list[bytes]:
    """As PyTorch writes it now, as it did before archives, and wrapped as trainers do."""
    import torch

    tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
    out = []
    for found, options in (
        (tensors, {}),
        (tensors, {"_use_new_zipfile_serialization": False}),
        ({"model": tensors, "epoch": 3}, {}),
    ):
        file = io.BytesIO()
        torch.save(found, file, **options)
        out.append(file.getvalue())
    return out


def _readers() -> list[Reader]:
    published, converted, arrays = made()
    face = hugging_face(arrays)
    settings = {
        "hidden_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "layer_norm_eps": 1e-6,
        "hidden_act": "gelu",
        "vision_config": {"num_attention_heads": 2},
    }
    prepare = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.25, 0.5]}
    size = int.from_bytes(converted[:8], "little")
    metadata = json.loads(converted[8 : 8 + size])["__metadata__"]

    def beside(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(face)

    readers = [
        Reader(
            "converted weights",
            "a.safetensors",
            read_converted,
            [converted],
            strategy=st.one_of(architectures(converted), headers(metadata)),
            tokens=(b'"shape":[1000000000]', b"[" * 3000, b'"BF16"'),
        ),
        Reader(
            "published safetensors",
            "a.safetensors",
            read_published,
            [published, face],
            strategy=headers(metadata),
            tokens=(b"blocks.999999999.", b'"BF16"', b"[" * 3000),
        ),
        Reader(
            "config.json of weights",
            "config.json",
            read_beside,
            [json.dumps(settings).encode()],
            beside,
            spoiled(settings),
        ),
        Reader(
            "preprocessor_config.json",
            "preprocessor_config.json",
            read_beside,
            [json.dumps(prepare).encode()],
            beside,
            spoiled(prepare),
        ),
    ]
    if importlib.util.find_spec("torch") is not None:
        readers.append(
            Reader(
                "PyTorch checkpoint",
                "a.pth",
                read_published,
                pth(arrays),
                strategy=archives(),
                repair=rezipped,
                tokens=(b"cos\nsystem\n", b"\x8a\xff", b"\x80\x04", b"PK\x03\x04"),
            )
        )
    return readers


READERS = _readers()
