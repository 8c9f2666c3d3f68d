"""Weights from a hub, which is a stub on loopback here."""

import hashlib
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from safetensors.torch import save

from client.model.build import build
from client.model.encoders import architecture
from client.model.fetch import fetch
from common.config import ClassifierConfig
from common.errors import ConfigError, SiteDataError

COMMIT = "c" * 40
REPOSITORY = "timm/test_vit.r160_in1k"


class Hub(ThreadingHTTPServer):
    """Answers as the hub does for a repository with these files."""

    def __init__(self, repository: str, files: dict[str, bytes], licence: str | None = "apache-2.0") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repository, self.files, self.licence = repository, files, licence
        self.hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def about(self) -> dict[str, object]:
        siblings = [
            {
                "rfilename": name,
                "size": len(content),
                "blobId": "b" * 40,
                "lfs": {"sha256": self.hashes[name], "size": len(content), "pointerSize": 134},
            }
            for name, content in self.files.items()
        ]
        card = {} if self.licence is None else {"license": self.licence}
        return {"id": self.repository, "sha": COMMIT, "siblings": siblings, "cardData": card, "tags": []}


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def _answer(self, *, body: bool) -> None:
        hub, path = self.server, self.path.partition("?")[0]
        if path == f"/api/models/{hub.repository}":
            self._send(json.dumps(hub.about()).encode(), {"Content-Type": "application/json"}, body)
            return
        start = f"/{hub.repository}/resolve/{COMMIT}/"
        name = path.removeprefix(start)
        if path.startswith(start) and name in hub.files:
            self._send(hub.files[name], {"ETag": f'"{hub.hashes[name]}"', "X-Repo-Commit": COMMIT}, body)
            return
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, content: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(200)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)


def served(hub: Hub) -> Iterator[Hub]:
    thread = Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    yield hub
    hub.shutdown()
    hub.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A hub with timm's weights of test_vit, all of them 0.5."""
    network = architecture(ClassifierConfig(encoder="test_vit"), 1000)
    tensors = {name: torch.full_like(value, 0.5) for name, value in network.state_dict().items()}
    yield from served(Hub(REPOSITORY, {"model.safetensors": save(tensors), "README.md": b"# card"}))


def test_weights_of_timm_are_fetched_and_a_study_starts_from_them(hub: Hub, tmp_path: Path) -> None:
    found = fetch("test_vit", tmp_path / "weights", endpoint=hub.address)
    assert found.path == tmp_path / "weights/test_vit.r160_in1k.safetensors"
    assert found.path.read_bytes() == hub.files["model.safetensors"]
    assert (found.licence, found.origin, found.revision) == ("apache-2.0", REPOSITORY, COMMIT)
    origin = json.loads((tmp_path / "weights/test_vit.r160_in1k.safetensors.origin.json").read_text())
    assert origin == {
        "origin": REPOSITORY, "revision": COMMIT, "licence": "apache-2.0", "sha256": hub.hashes["model.safetensors"],
        "encoder": "test_vit",
    }  # fmt: skip
    assert sorted(path.name for path in found.path.parent.iterdir()) == [
        "test_vit.r160_in1k.safetensors", "test_vit.r160_in1k.safetensors.origin.json",
    ]  # fmt: skip
    assert f"sha256: {hub.hashes['model.safetensors']}" in found.describe()
    config = ClassifierConfig.model_validate(found.stanza["model"])
    built = build(config, 3, 0, found.path.parent)
    assert float(built.model.state_dict()["pos_embed"].min()) == 0.5


def test_a_licence_that_the_hub_does_not_state_is_timms(hub: Hub, tmp_path: Path) -> None:
    hub.licence = None
    assert fetch("test_vit", tmp_path, endpoint=hub.address).licence == "apache-2.0"


def test_bytes_that_are_not_those_of_the_hub_are_refused(hub: Hub, tmp_path: Path) -> None:
    hub.files["model.safetensors"] += b"x"
    with pytest.raises(SiteDataError, match="the hub says"):
        fetch("test_vit", tmp_path, endpoint=hub.address)
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_text_tower_is_a_folder(tmp_path: Path) -> None:
    files = dict.fromkeys(("config.json", "tokenizer.json", "model.safetensors", "pytorch_model.bin"), b"{}")
    for hub in served(Hub("lab/bert", files, licence=None)):
        found = fetch("lab/bert", tmp_path, library="hugging_face", endpoint=hub.address)
        assert sorted(path.name for path in found.path.iterdir()) == [
            "config.json", "model.safetensors", "tokenizer.json",
        ]  # fmt: skip
        assert found.stanza["model"]["text"]["weights"]["name"] == "bert"
        assert found.licence == "not stated: ask the authors before you use it"
        del hub.files["model.safetensors"]
        with pytest.raises(SiteDataError, match=r"lab/bert has no model\.safetensors, only config\.json"):
            fetch("lab/bert", tmp_path, library="hugging_face", endpoint=hub.address)


def test_a_clip_of_open_clip_needs_a_tag(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"found --tag None, expected one of .*laion2b_s34b_b79k"):
        fetch("ViT-B-32", tmp_path, library="open_clip")
    repository = "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
    for hub in served(Hub(repository, {"open_clip_model.safetensors": b"clip"}, licence="mit")):
        found = fetch(
            "ViT-B-32", tmp_path, library="open_clip", tag="laion2b_s34b_b79k", endpoint=hub.address
        )
        assert found.stanza["model"]["library"] == "open_clip"
        assert found.path.read_bytes() == b"clip"


def test_names_that_there_are_not_are_refused(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no encoder 'test_vti'"):
        fetch("test_vti", tmp_path, endpoint=hub.address)
    with pytest.raises(ConfigError, match="expected a name of the hub as OWNER/NAME"):
        fetch("bert", tmp_path, library="hugging_face", endpoint=hub.address)
    with pytest.raises(SiteDataError, match="the hub does not tell about lab/bert"):
        fetch("lab/bert", tmp_path, library="hugging_face", endpoint=hub.address)
