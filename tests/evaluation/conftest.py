"""A judge that misbehaves on this machine, and two small videos with known answers."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from stub_judge import StubJudge, make_handler

from longvlm.evaluation import judge


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[StubJudge]:
    """A running endpoint with the key set and delays that do not hold up the tests."""
    stub = StubJudge()
    server = ThreadingHTTPServer(("127.0.0.1", 0), make_handler(stub))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    stub.url = f"http://127.0.0.1:{server.server_port}/v1"
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    monkeypatch.setattr(judge, "FIRST_DELAY_SECONDS", 0.001)
    monkeypatch.setattr(judge, "LONGEST_DELAY_SECONDS", 0.01)
    yield stub
    server.shutdown()
    server.server_close()


@pytest.fixture
def write_json(tmp_path: Path) -> Callable[[str, object], str]:
    def write(name: str, content: object) -> str:
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture(scope="session")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """v_one.mp4 and two.mkv, 10 seconds each, of the generated world."""
    from longvlm.world.scene import make_scene
    from longvlm.world.video import write_video

    folder = tmp_path_factory.mktemp("films")
    for seed, name in ((10**9 + 1, "v_one.mp4"), (10**9 + 2, "two.mkv")):
        write_video(make_scene(seed, 10.0), folder / name, width=64, height=48, fps=4, threads=1, show_progress=False)
    return folder
