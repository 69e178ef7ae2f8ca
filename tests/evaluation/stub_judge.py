"""An OpenAI-compatible endpoint on this machine that behaves as badly as a test wants."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any

Outcome = tuple[int, str] | str | float | None


class StubJudge:
    """An OpenAI-compatible endpoint. `script(prompt, attempt)` says how the attempt (0, 1, …) at a prompt ends:

    a text is the reply, (status, body) any other response, a number a sleep of that many seconds before a bad
    reply, None a connection that is dropped. A prompt is the last but the reminder's user message. `listing` is the
    response to whoever asks for the models, which `listed` counts. `authorizations` are what requests came with.
    """

    def __init__(self) -> None:
        self.script: Callable[[str, int], Outcome] = lambda prompt, attempt: "{'pred': 'yes', 'score': 4}"
        self.listing: tuple[int, str] = (200, '{"object": "list", "data": []}')
        self.listed = 0
        self.prompts: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.authorizations: set[str | None] = set()
        self.most_at_once = 0
        self._attempts: Counter[str] = Counter()
        self._now = 0
        self._lock = threading.Lock()
        self.url = ""

    def outcome(self, body: dict[str, Any]) -> Outcome:
        prompt = next(message["content"] for message in body["messages"] if message["role"] == "user")
        with self._lock:
            attempt = self._attempts[prompt]
            self._attempts[prompt] += 1
            self.prompts.append(prompt)
            self.bodies.append(body)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        time.sleep(0.01)  # slow enough for requests to meet
        with self._lock:
            self._now -= 1
        return self.script(prompt, attempt)


def completion(reply: str) -> str:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": reply}}
    return json.dumps(
        {"id": "1", "object": "chat.completion", "created": 1, "model": "stub-2026-01-01", "choices": [choice]}
    )


def make_handler(stub: StubJudge) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

        def do_GET(self) -> None:
            if self.path == "/v1/models":
                stub.listed += 1
                self._send(*stub.listing)
            else:
                self._send(404, '{"error": {"message": "no such page"}}')

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path != "/v1/chat/completions":
                self._send(404, '{"error": {"message": "no such page"}}')
                return
            stub.authorizations.add(self.headers["Authorization"])
            outcome = stub.outcome(body)
            if outcome is None:
                self.close_connection = True
                return
            if isinstance(outcome, float):
                time.sleep(outcome)
                outcome = "too late"
            status, text = (200, completion(outcome)) if isinstance(outcome, str) else outcome
            self._send(status, text)

        def _send(self, status: int, text: str) -> None:
            try:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text.encode())))
                self.end_headers()
                self.wfile.write(text.encode())
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True  # the client has stopped waiting

    return Handler
