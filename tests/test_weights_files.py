"""Damaged, malicious and foreign checkpoint files, and loading what was converted."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from muscjax.backbones import params
from muscjax.errors import InputError
from tests.checkpoints import key_lists, small_checkpoint, write_zeros
from weights_convert import convert


def assert_refused(source, tmp_path, found: str) -> None:
    """One line that says what is wrong, and nothing written."""
    folder = tmp_path / "out"
    with pytest.raises(InputError, match=found) as caught:
        convert(source, folder / "dest.safetensors")
    assert "\n" not in str(caught.value)
    assert str(source) in str(caught.value)
    assert not folder.exists() or not list(folder.iterdir())


@pytest.mark.parametrize("keep", [0, 5, 40, 2000, -1])
def test_truncated_safetensors_is_refused(tmp_path, keep):
    source, _, _ = small_checkpoint(tmp_path)
    source.write_bytes(source.read_bytes()[:keep])
    assert_refused(source, tmp_path, "damaged|neither safetensors")


def test_other_files_are_refused(tmp_path):
    source = tmp_path / "page.safetensors"
    source.write_text("<html>not found</html>")
    assert_refused(source, tmp_path, "neither safetensors nor a PyTorch checkpoint")
    with pytest.raises(InputError, match="no such checkpoint"):
        convert(tmp_path / "absent.pth", tmp_path / "x.safetensors")


def test_values_that_are_not_finite_or_not_floats_are_refused(tmp_path):
    source, arrays, _ = small_checkpoint(tmp_path)
    arrays["norm.bias"][3] = np.nan
    save_file(arrays, source)
    assert_refused(source, tmp_path, "norm.bias holds values that are not finite")
    arrays["norm.bias"] = np.zeros(64, np.int64)
    save_file(arrays, source)
    assert_refused(source, tmp_path, "norm.bias has dtype int64")


class Malicious:
    """A pickle that creates a file when it is loaded without care."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("form", ["legacy pickle", "torch zip", "inside a checkpoint"])
def test_malicious_pickle_is_refused_and_never_executed(tmp_path, form):
    torch = pytest.importorskip("torch", reason="a .pth needs torch")
    trap, source = tmp_path / "executed", tmp_path / "evil.pth"
    bait = {"cls_token": torch.zeros(1, 1, 8), "evil": Malicious(trap)}
    if form == "legacy pickle":
        source.write_bytes(pickle.dumps(Malicious(trap), protocol=2))
    elif form == "torch zip":
        torch.save(Malicious(trap), source)
    else:
        torch.save({"model": bait, "args": Malicious(trap)}, source)
    trap.unlink(missing_ok=True)
    assert_refused(source, tmp_path, "refused or damaged")
    assert not trap.exists()


def test_truncated_pth_is_refused(tmp_path):
    torch = pytest.importorskip("torch", reason="a .pth needs torch")
    _, arrays, _ = small_checkpoint(tmp_path)
    source = tmp_path / "model.pth"
    torch.save({key: torch.from_numpy(a) for key, a in arrays.items()}, source)
    whole = source.read_bytes()
    for keep in (20, len(whole) // 2, len(whole) - 1):
        source.write_bytes(whole[:keep])
        assert_refused(source, tmp_path, "damaged")
    torch.save([1, 2, 3], source)
    assert_refused(source, tmp_path, "no state_dict in it")
    torch.save({"optimizer": {"lr": 0.1}}, source)
    assert_refused(source, tmp_path, "no state_dict in it")


def test_torchscript_archive_is_refused(tmp_path):
    source = tmp_path / "ViT-L-14.pt"
    with zipfile.ZipFile(source, "w") as archive:
        archive.writestr("model/constants.pkl", b"")
        archive.writestr("model/code/__torch__.py", b"")
    pytest.importorskip("torch", reason="a .pth needs torch")
    assert_refused(source, tmp_path, "TorchScript archive")


def test_trainers_extras_do_not_matter(tmp_path):
    """Point-MAE and DeiT pickle scalars and their command line beside the weights."""
    torch = pytest.importorskip("torch", reason="a .pth needs torch")
    import argparse

    _, arrays, spec = small_checkpoint(tmp_path)
    state = {key: torch.from_numpy(a) for key, a in arrays.items()}
    extras = {"epoch": 300, "metrics": {"acc": np.float64(0.5)}, "args": argparse.Namespace(lr=0.1)}
    torch.save({"model": state, **extras}, tmp_path / "model.pth")
    assert convert(tmp_path / "model.pth", tmp_path / "f.safetensors").spec.width == spec.width


def test_pth_without_torch_says_what_to_install(tmp_path, monkeypatch):
    source = tmp_path / "model.pth"
    source.write_bytes(pickle.dumps({}, protocol=2))
    monkeypatch.setitem(sys.modules, "torch", None)
    assert_refused(source, tmp_path, r"needs torch.*pip install 'muscjax\[convert\]'")


def test_torch_with_the_known_hole_is_refused(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch", reason="a .pth needs torch")
    source = tmp_path / "model.pth"
    source.write_bytes(pickle.dumps({}, protocol=2))
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    assert_refused(source, tmp_path, "torch 2.5.1.* expected 2.6 or newer")


def test_safetensors_needs_no_torch(tmp_path):
    source, _, _ = small_checkpoint(tmp_path)
    code = (
        "import sys; from weights_convert import convert\n"
        f"convert({str(source)!r}, {str(tmp_path / 'f.safetensors')!r})\n"
        "assert not {'torch', 'transformers', 'optax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_bfloat16_source_is_read(tmp_path):
    source, arrays, _ = small_checkpoint(tmp_path)
    save_file({key: a.astype(jnp.bfloat16) for key, a in arrays.items()}, source)
    report = convert(source, tmp_path / "f.safetensors")
    stored = load_file(report.path)["norm.scale"]
    np.testing.assert_array_equal(stored, arrays["norm.weight"].astype(jnp.bfloat16).astype(np.float32))


def test_interrupted_conversion_leaves_nothing_that_is_trusted(tmp_path, monkeypatch):
    source, _, _ = small_checkpoint(tmp_path)
    dest = tmp_path / "out" / "f.safetensors"
    monkeypatch.setattr(params.os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        convert(source, dest)
    assert list(dest.parent.iterdir()) == []


def test_destination_that_cannot_be_written_is_named(tmp_path):
    source, _, _ = small_checkpoint(tmp_path)
    (tmp_path / "file").write_text("")
    for dest in (tmp_path / "file" / "f.safetensors", tmp_path, source):
        with pytest.raises(InputError, match=str(dest)):
            convert(source, dest)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_loads_in_the_dtype_that_is_asked_for(tmp_path, dtype):
    source, arrays, _ = small_checkpoint(tmp_path)
    loaded = params.load(convert(source, tmp_path / "f.safetensors").path, kind="image", dtype=dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded.params)} == {jnp.dtype(dtype)}
    wanted = arrays["blocks.0.mlp.fc1.weight"].T.astype(dtype)
    np.testing.assert_array_equal(loaded.params["block_0"]["fc1"]["kernel"], wanted)


def test_converted_file_must_be_what_its_header_says(tmp_path):
    source, _, _ = small_checkpoint(tmp_path)
    path = convert(source, tmp_path / "f.safetensors").path
    header, tensors = params.metadata(path), load_file(path)

    def rewritten(tensors, header):
        save_file(tensors, path, header)
        with pytest.raises(InputError) as caught:
            params.load(path, kind="image")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    with pytest.raises(InputError, match="expected one for points"):
        params.load(path, kind="points")
    less = {k: v for k, v in tensors.items() if k != "norm.bias"}
    assert "norm.bias missing" in rewritten(less, header)
    assert "extra unexpected" in rewritten({**tensors, "extra": np.zeros(2)}, header)
    assert "cls is F32 of shape (3,), expected F32 of shape (64,)" in rewritten(
        {**tensors, "cls": np.zeros(3, np.float32)}, header
    )
    assert "architecture cannot be read" in rewritten(tensors, {**header, "architecture": "{"})
    assert "architecture cannot be read" in rewritten(tensors, {**header, "architecture": '{"depth": 3}'})
    hostile = json.loads(header["architecture"]) | {"patch_size": 0}
    assert "patch_size: found 0" in rewritten(tensors, {**header, "architecture": json.dumps(hostile)})
    assert "expected muscjax-1" in rewritten(tensors, {**header, "format": "muscjax-9"})
    assert "not converted yet" in rewritten(tensors, {})


@pytest.mark.slow
def test_loading_vit_b8_is_fast_and_lean(tmp_path):
    """A few readings of the file, and at the peak no more than the parameters' own size beside them."""
    if not Path("/proc/self/status").exists():
        pytest.skip("peak memory is read from /proc")
    write_zeros(tmp_path / "source.safetensors", key_lists()["dino"])
    path = convert(tmp_path / "source.safetensors", tmp_path / "f.safetensors").path
    code = f"""
import re, time, jax
from muscjax.backbones import params
jax.block_until_ready(jax.numpy.zeros(3))
params.shapes(params.vit.Spec(8, 768, 12, 12, 224))
def memory(field):
    return 1024 * int(re.search(field + r":\\s+(\\d+)", open("/proc/self/status").read())[1])
start = time.perf_counter()
open({str(path)!r}, "rb").read()
reading = time.perf_counter() - start
before, start = memory("VmRSS"), time.perf_counter()
loaded = params.load({str(path)!r}, kind="image")
jax.block_until_ready(loaded.params)
seconds, extra = time.perf_counter() - start, memory("VmHWM") - before
size = sum(a.nbytes for a in jax.tree.leaves(loaded.params))
print(f"{{seconds:.2f}} s, reading {{reading:.2f}} s")
print(f"peak {{extra / size:.2f}} x the parameters' {{size / 1e6:.0f}} MB")
assert seconds < 15 * reading, (seconds, reading)
assert extra < 2 * size, extra / size
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    path.unlink()
    print(done.stdout)
    assert done.returncode == 0, done.stderr
