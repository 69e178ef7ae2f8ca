"""Downloads from a hub on this machine: which files are fetched, and what its failures become."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest

from longvlm.errors import LongVLMError
from longvlm.model.checkpoints import resolve_model
from longvlm.model.download import name_of_checkpoint

SHA = "0123456789abcdef0123456789abcdef01234567"
REPOSITORIES = {
    "own/tensors": ["config.json", "model.safetensors", "pytorch_model.bin", "fp32/model.safetensors", "on/nx.json"],
    "own/pickles": ["config.json", "pytorch_model.bin", "training.bin", "old/pytorch_model.bin"],
    "own/broken": ["config.json", "model.safetensors"],
}


class Hub(BaseHTTPRequestHandler):
    """What snapshot_download asks of a hub; every file holds its own name."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].strip("/")
        repository = next((name for name in REPOSITORIES if name in path), None)
        if "own/garbage" in path:
            self.wfile.write(b"no such protocol\r\n\r\n")
            self.close_connection = True
        elif "own/busy" in path:
            self._reply(503, b"")
        elif repository is None:
            self._reply(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif "/tree/" in path:
            files = [
                {"type": "file", "path": f, "size": len(f), "oid": f"{i:040}"}
                for i, f in enumerate(REPOSITORIES[repository])
            ]
            self._reply(200, json.dumps(files).encode())
        elif path.startswith("api/"):
            self._reply(200, json.dumps({"id": repository, "sha": SHA, "siblings": []}).encode())
        else:
            name = path.partition(f"/resolve/{SHA}/")[2]
            etag = f"{REPOSITORIES[repository].index(name):040}"
            is_cut = repository == "own/broken" and self.command == "GET"
            body = b"cut" if is_cut else name.encode()
            self._reply(200, body, {"ETag": f'"{etag}"', "X-Repo-Commit": SHA})

    def _reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keep the tests' output clean."""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache folder of its own, and the local hub in place of the real one."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    for name, value in {"ENDPOINT": address, "HF_HUB_OFFLINE": False, "HF_HUB_CACHE": str(tmp_path / "hub")}.items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    monkeypatch.setattr(
        huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    huggingface_hub.close_session()
    yield tmp_path / "hub"
    huggingface_hub.close_session()
    server.shutdown()
    server.server_close()


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_only_the_top_folder_s_safetensors_are_fetched(cache: Path) -> None:
    folder = resolve_model("own/tensors")
    assert files_in(folder) == {"config.json", "model.safetensors"}
    assert (folder / "model.safetensors").read_text() == "model.safetensors"
    assert folder.name == SHA and name_of_checkpoint(folder) == "own/tensors"
    assert name_of_checkpoint(cache) == "hub"


def test_pickled_weights_are_fetched_where_there_are_no_others(cache: Path) -> None:
    assert files_in(resolve_model("own/pickles")) == {"config.json", "pytorch_model.bin"}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("own/nothing", "hub has no such model"),
        ("own/busy", "status 503|can't be reached"),
        ("own/broken", r"broke off .*size.*it resumes"),
        ("own/garbage", "broke off"),
    ],
)
def test_failures_are_told_in_one_line(cache: Path, name: str, reason: str) -> None:
    with pytest.raises(LongVLMError, match=reason) as refusal:
        resolve_model(name)
    assert name in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_disk_that_cannot_be_written_is_named(cache: Path) -> None:
    cache.write_text("a file where the cache's folder should be")
    with pytest.raises(LongVLMError, match=r"broke off \(.*hub.*space on the disk"):
        resolve_model("own/tensors")
