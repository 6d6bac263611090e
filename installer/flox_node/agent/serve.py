"""`/healthz`, `/readyz` and `/metrics` of one container."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer


class Health:
    """Answers on a port, on a thread of its own, for as long as the process lives.

    The loop says how long it may be silent; a loop that is silent for longer hangs, and /healthz says so.
    """

    def __init__(self, port: int, *, ready: Callable[[], bool], metrics: Callable[[], bytes] | None = None) -> None:
        self._alive_until = time.monotonic() + 60.0
        self._ready, self._metrics = ready, metrics
        health = self

        class Handler(BaseHTTPRequestHandler):
            timeout = 5.0

            def do_GET(self) -> None:
                code, body = health.answer(self.path)
                self.send_response(code)
                self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *arguments: object) -> None:
                """A probe is no news."""

        self._server = HTTPServer(("", port), Handler)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 3600}, daemon=True).start()

    def alive_for(self, seconds: float) -> None:
        """The loop lives, and may be silent for so long."""
        self._alive_until = time.monotonic() + seconds

    def answer(self, path: str) -> tuple[int, bytes]:
        """Status code and body of a path."""
        if path == "/healthz":
            return (200, b"ok\n") if time.monotonic() < self._alive_until else (503, b"the loop hangs\n")
        if path == "/readyz":
            return (200, b"ok\n") if self._ready() else (503, b"not yet\n")
        if path == "/metrics" and self._metrics is not None:
            return 200, self._metrics()
        return 404, b"/healthz, /readyz, /metrics\n"
