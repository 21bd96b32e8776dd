"""Named backbones: download from a local server, hashes, cache, messages; and the loaded callables."""

from __future__ import annotations

import dataclasses
import http.server
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from huggingface_hub import constants

from muscjax.backbones import fetch, network, params, point_mae, registry, vit
from muscjax.errors import InputError
from tests.checkpoints import small_checkpoint
from tests.test_point_mae import SMALL as SMALL_POINTS
from tests.test_point_mae import scene
from tests.test_vit import SMALL, images, nested, random_flat

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Server:
    """A file server on the loopback that counts requests, and can stop short or stall."""

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.sent: int | None = None  # bytes of a body that are sent before the connection closes
        self.stall = threading.Event()
        self.stall.set()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self):
                self.answer(body=False)

            def do_GET(self):
                self.answer(body=True)

            def answer(self, *, body: bool):
                outer.requests.append(f"{self.command} {self.path}")
                data = outer.files.get(self.path)
                if data is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.send_header("ETag", '"e"')
                self.send_header("X-Repo-Commit", COMMIT)
                self.end_headers()
                if body:
                    self.wfile.write(data[: outer.sent])
                    self.wfile.flush()
                    outer.stall.wait(30)

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self):
        self.stall.set()
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    running = Server()
    yield running
    running.close()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MUSCJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "cache"


@pytest.fixture
def tiny(server, cache, tmp_path, monkeypatch):
    """A published backbone called ``tiny``, one block of DINO, served as /tiny.safetensors."""
    path, _, spec = small_checkpoint(tmp_path)
    server.files["/tiny.safetensors"] = path.read_bytes()
    source = fetch.Source(url=f"{server.address}/tiny.safetensors")
    entry = registry.Entry("tiny", "image", "dino", source, "Apache-2.0", 0.05, 4, 64, 1, 8)
    assert (spec.patch_size, spec.width, spec.depth, spec.image_size) == (4, 64, 1, 8)
    return publish(monkeypatch, entry)


def publish(monkeypatch, entry):
    monkeypatch.setattr(registry, "ENTRIES", (entry,))
    return entry


def load(name: str = "tiny"):
    return registry.load_image_backbone(name, progress=False)


def refused(name: str = "tiny") -> str:
    with pytest.raises(InputError) as caught:
        load(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def visible(folder):
    return sorted(p.name for p in folder.rglob("*") if p.is_file()) if folder.exists() else []


def test_first_use_downloads_converts_and_caches(tiny, server, cache):
    backbone = load()
    assert backbone.spec.name == "tiny"
    assert backbone(jnp.zeros((2, 8, 8, 3))).shape == (1, 2, 4, 64)
    assert visible(cache) == ["hashes.json", "tiny.safetensors", "tiny.safetensors"]
    header = params.metadata(registry.converted_path("tiny"))
    assert header["source"] == tiny.source.url
    assert header["license"] == "Apache-2.0"
    server.close()
    before = len(server.requests)
    assert before == 1
    again = load()
    jax.tree.map(np.testing.assert_array_equal, again.params, backbone.params)
    assert len(server.requests) == before


def test_table_says_what_is_cached(tiny):
    row, *free = registry.table()
    assert (row.name, row.cached, row.license, row.source) == ("tiny", False, "Apache-2.0", tiny.source.url)
    assert [(entry.name, entry.kind, entry.cached) for entry in free] == [
        ("texture", "image", True),
        ("fpfh", "points", True),
    ]
    load()
    assert registry.table()[0].cached


def test_known_hash_is_verified_before_anything_is_kept(tiny, cache, monkeypatch):
    publish(monkeypatch, dataclasses.replace(tiny, source=dataclasses.replace(tiny.source, sha256="0" * 64)))
    assert "expected " + "0" * 64 in refused()
    assert visible(cache) == []


def test_hash_of_first_use_is_checked_ever_after(tiny, server, cache):
    load()
    (cache / "downloads" / "tiny.safetensors").unlink()
    registry.converted_path("tiny").unlink()
    body = bytearray(server.files["/tiny.safetensors"])
    body[-1] ^= 1
    server.files["/tiny.safetensors"] = bytes(body)
    assert f"of {tiny.source.url}; delete the file to fetch it again" in refused()
    assert visible(cache) == ["hashes.json"]


def test_cached_files_that_changed_are_refused(tiny, cache):
    load()
    path = registry.converted_path("tiny")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert f"{path}: SHA-256 is" in refused()
    path.write_bytes(whole[:-9])
    assert str(path) in refused()
    path.unlink()
    download = cache / "downloads" / "tiny.safetensors"
    download.write_bytes(download.read_bytes() + b" ")
    assert f"{download}: SHA-256 is" in refused()


def test_converted_file_of_another_source_is_refused(tiny, cache, monkeypatch):
    load()
    publish(monkeypatch, dataclasses.replace(tiny, source=dataclasses.replace(tiny.source, sha256="1" * 64)))
    assert "made from a source with SHA-256" in refused()


@pytest.mark.parametrize("sent", [0, 1000])
def test_transfer_that_ends_early_is_not_kept(tiny, server, cache, sent):
    server.sent = sent
    message = refused()
    assert "tiny: cannot be downloaded" in message
    assert f"save it as {cache / 'downloads' / 'tiny.safetensors'}" in message
    assert visible(cache) == []
    server.sent = None
    load()


def test_missing_file_and_missing_network_say_what_to_do(tiny, server, cache):
    del server.files["/tiny.safetensors"]
    message = refused()
    assert "404" in message
    server.close()
    message = refused()
    assert f"fetch {tiny.source.url} on another machine" in message
    assert f"save it as {cache / 'downloads' / 'tiny.safetensors'}" in message
    assert message.endswith("go without weights: --image-backbone texture")


def test_message_for_points_names_the_weight_free_backbone(cache, monkeypatch):
    entry = registry.find("point-mae")
    assert entry is not None
    publish(
        monkeypatch, dataclasses.replace(entry, source=fetch.Source(url="http://127.0.0.1:9/pretrain.pth"))
    )
    with pytest.raises(InputError, match=r"downloads/point-mae\.pth.*weights: --point-backbone fpfh$"):
        registry.load_point_backbone("point-mae", progress=False)


def test_file_put_in_place_by_hand_is_used_without_network(tiny, server, cache):
    place = fetch.download_path("tiny", tiny.source)
    place.parent.mkdir(parents=True)
    place.write_bytes(server.files["/tiny.safetensors"])
    load()
    assert server.requests == []


def test_download_of_another_network_is_refused(tiny, cache, monkeypatch):
    publish(monkeypatch, dataclasses.replace(tiny, width=768))
    assert "width is 64, expected 768" in refused()
    assert not registry.converted_path("tiny").exists()


def test_damaged_ledger_is_named(tiny, cache):
    load()
    for text in ("{", "[]"):
        (cache / "hashes.json").write_text(text)
        assert str(cache / "hashes.json") in refused()


def test_killed_download_leaves_nothing_that_is_trusted(tiny, server, cache):
    server.sent, whole = 2000, server.files["/tiny.safetensors"]
    server.stall.clear()
    code = (
        "from muscjax.backbones import fetch\n"
        f"fetch.fetch('tiny', fetch.Source(url={tiny.source.url!r}), alternative='', progress=False)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(cache.glob("downloads/.*.tmp")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert [p.name for p in cache.rglob("*.safetensors")] == []
    server.stall.set()
    server.sent = None
    load()
    assert fetch.download_path("tiny", tiny.source).read_bytes() == whole


def test_killed_conversion_leaves_nothing_that_is_trusted(tiny, cache, tmp_path):
    code = (
        "import os\nfrom muscjax.backbones import params\nfrom weights_convert import convert\n"
        "os.replace = lambda *_: os._exit(9)\n"
        f"convert({str(tmp_path / 'small.safetensors')!r}, {str(registry.converted_path('tiny'))!r})"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 9
    left = visible(cache)
    assert len(left) == 1
    assert left[0].endswith(".tmp")
    assert not registry.table()[0].cached
    load()


# --- the hub protocol ----------------------------------------------------------------------------------


@pytest.fixture
def hub(server, cache, tmp_path, monkeypatch):
    path, _, _ = small_checkpoint(tmp_path)
    for revision in ("main", COMMIT):
        server.files[f"/owner/tiny/resolve/{revision}/model.safetensors"] = path.read_bytes()
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    entry = registry.Entry("tiny", "image", "dino", fetch.Source("owner/tiny"), "MIT", 0.05, 4, 64, 1, 8)
    publish(monkeypatch, entry)
    return server


def test_hub_file_is_downloaded_and_its_commit_kept(hub, cache):
    load()
    assert fetch.recorded("owner/tiny@commit") == COMMIT
    assert COMMIT in params.metadata(registry.converted_path("tiny"))["source"]
    registry.converted_path("tiny").unlink()
    hub.close()
    before = len(hub.requests)
    load()
    assert len(hub.requests) == before


def test_hub_without_network_says_what_to_fetch(hub, cache):
    hub.close()
    message = refused()
    assert f"fetch {hub.address}/owner/tiny/resolve/main/model.safetensors" in message
    assert f"save it as {cache / 'downloads' / 'tiny.safetensors'}" in message


def test_hub_file_that_is_absent_is_named(hub):
    hub.files.clear()
    assert "tiny: cannot be downloaded" in refused()


# --- names ---------------------------------------------------------------------------------------------


def test_names_are_unique_and_complete():
    names = [entry.name for entry in registry.ENTRIES]
    assert len(set(names)) == len(names)
    wanted = "dino-vits16 dino-vits8 dino-vitb16 dino-vitb8 dinov2-vits14 dinov2-vitb14 dinov2-vitl14"
    wanted += " clip-vitl14-336 clip-vitl14 clip-vitb16 clip-vitb32 deit-tiny deit-small deit-base point-mae"
    assert set(wanted.split()) <= set(names)
    for entry in registry.ENTRIES:
        assert bool(entry.source.url) != bool(entry.source.repository)
        assert entry.license in ("Apache-2.0", "MIT")


@pytest.mark.parametrize("entry", registry.ENTRIES, ids=lambda entry: entry.name)
def test_stated_parameters_are_those_of_the_architecture(entry):
    if entry.kind == "points":
        spec: params.Spec = point_mae.Spec(entry.width, entry.depth)
    else:
        assert entry.patch_size is not None
        assert entry.image_size is not None
        heads = entry.width // 64
        clip = entry.family == "clip"
        spec = vit.Spec(
            entry.patch_size,
            entry.width,
            entry.depth,
            heads,
            entry.image_size,
            registers=entry.registers,
            layer_scale=entry.family == "dinov2",
            pre_norm=clip,
            patch_bias=not clip,
            projection=(768 if entry.width == 1024 else 512) if clip else 0,
        )
    count = sum(int(np.prod(shape)) for shape in params.shapes(spec).values())
    assert count / 1e6 == pytest.approx(entry.millions, abs=0.05)


def test_unknown_name_lists_the_known_ones(cache):
    message = refused("dino-vitb9")
    assert "no such weights file, and no backbone of that name" in message
    assert "dino-vitb8" in message
    assert "point-mae" not in message


def test_name_of_the_other_kind_is_refused(cache):
    assert refused("point-mae") == "point-mae: a backbone for points, expected one for image"


def test_unconverted_and_wrong_files_are_refused(tmp_path):
    path, _, _ = small_checkpoint(tmp_path)
    assert "not converted yet; run: muscjax convert small.safetensors" in refused(str(path))
    path.write_bytes(b"garbage")
    assert "not a readable safetensors file" in refused(str(path))
    with pytest.raises(InputError, match="no such weights file"):
        load(str(tmp_path))


# --- loaded backbones ----------------------------------------------------------------------------------


def test_image_backbone_is_a_pytree_whose_parameters_are_traced():
    backbone = network.image_backbone(nested(random_flat(SMALL, vit.shapes)), SMALL, image_size=16)
    x = images()
    jaxpr = jax.make_jaxpr(lambda backbone, x: backbone(x))(backbone, x)
    assert sum(np.size(c) for c in jaxpr.consts) == 0
    wanted = jax.jit(partial(vit.features, spec=SMALL))(backbone.params, x)
    np.testing.assert_allclose(backbone(x), wanted, rtol=0, atol=1e-6)
    assert (backbone.grid, backbone(x).shape) == (4, (2, 2, 16, 32))
    assert backbone.with_class_token(x).class_token.shape == (2, 32)


def test_same_architecture_with_other_parameters_compiles_once():
    chex.clear_trace_counter()
    run = jax.jit(chex.assert_max_traces(lambda backbone, x: backbone(x), n=1))
    for seed in (0, 1):
        tree = nested(random_flat(SMALL, vit.shapes, seed))
        run(network.image_backbone(tree, SMALL, image_size=16), images())


def test_point_backbone_equals_features():
    tree = nested(random_flat(SMALL_POINTS, point_mae.shapes))
    cloud, groups = scene()
    backbone = network.point_backbone(tree, SMALL_POINTS, batch_norm="cloud", taps=(1,))
    run = jax.jit(partial(point_mae.features, spec=SMALL_POINTS, batch_norm="cloud", taps=(1,)))
    np.testing.assert_allclose(backbone(cloud, groups), run(tree, cloud, groups), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"image_size": 18}, "multiple of 4"),
        ({"image_size": 0}, "multiple of 4"),
        ({"taps": (3,)}, "blocks 0 to 2"),
    ],
)
def test_impossible_options_are_refused(options, found):
    with pytest.raises(InputError, match=found):
        network.image_backbone({}, SMALL, **options)
    with pytest.raises(InputError, match="running"):
        network.point_backbone({}, SMALL_POINTS, batch_norm="train")  # type: ignore[arg-type]
