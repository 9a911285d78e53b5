"""The page on 127.0.0.1, and normkit's answers for values that its reader chooses. Standard library only.

Rules: the loopback interface alone; GET / is the page, POST /compute four numbers through the layer, nothing else is
served, no file is opened. A request names this host (else a site could reach us by a name that it points here), comes
from no other origin, and is at most 16 KiB.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from .. import _reading
from ..errors import UsageError
from .numbers import four

HOST = "127.0.0.1"
LARGEST = 1 << 14  # bytes of a request
MOST = 512  # values of a batch


def serve(text: str, port: int, show: Callable[[str], object]) -> None:
    """Answer until interrupted. UsageError: the port is taken, or not ours to take."""
    try:
        server = make(text, port)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(f"cannot serve on {HOST}:{port}: {reason}: name another --port, or 0 for a free one") from None
    with server:
        show(f"http://{HOST}:{server.server_port}/  (Ctrl-C ends it)")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return


class Server(ThreadingHTTPServer):
    """Threads end with the process; a port in use is an error, never shared."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, text: str, port: int) -> None:
        self.page = text.encode()
        super().__init__((HOST, port), Handler)


def make(text: str, port: int) -> Server:
    """A server that is bound and not yet answering."""
    return Server(text, port)


class Handler(BaseHTTPRequestHandler):
    """One request."""

    timeout = 10  # seconds for a client that says nothing
    server: Server

    def do_GET(self) -> None:
        if not self._ours():
            self._answer(403, b"this page is for the machine it runs on", "text/plain")
        elif self.path == "/":
            self._answer(200, self.server.page, "text/html; charset=utf-8")
        else:
            self._answer(404, b"only / is here", "text/plain")

    def do_POST(self) -> None:
        if not self._ours():
            self._answer(403, b"this page is for the machine it runs on", "text/plain")
        elif self.path != "/compute":
            self._answer(404, b"only /compute is here", "text/plain")
        else:
            try:
                made = json.dumps(compute(self._body()), allow_nan=False).encode()
            except ValueError as error:
                self._answer(400, str(error).encode(), "text/plain; charset=utf-8")
            else:
                self._answer(200, made, "application/json")

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal keeps the address."""

    def _ours(self) -> bool:
        here = {f"{name}:{self.server.server_port}" for name in (HOST, "localhost")}
        origin = self.headers.get("Origin")
        return self.headers.get("Host") in here and (origin is None or origin.removeprefix("http://") in here)

    def _body(self) -> Any:
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit() or len(length) > 9 or int(length) > LARGEST:
            raise ValueError(f"expected a body of at most {LARGEST:,} bytes")
        return _reading.parse(self.rfile.read(int(length)).decode("utf-8"))

    def _answer(self, status: int, content: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in (
            ("Content-Type", kind),
            ("Content-Length", str(len(content))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            ("X-Frame-Options", "DENY"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


def compute(asked: Any) -> dict[str, Any]:
    """normkit's outputs for {x, gamma, beta, eps}. ValueError says what was expected."""
    if not isinstance(asked, dict) or not {"x", "gamma", "beta", "eps"} <= set(asked):
        raise ValueError("expected an object with x, gamma, beta and eps")
    x = asked["x"]
    if not isinstance(x, list) or not 2 <= len(x) <= MOST:
        raise ValueError(f"expected x to be a list of 2 to {MOST} numbers")
    numbers = [_number(value) for value in [*x, asked["gamma"], asked["beta"], asked["eps"]]]
    *values, gamma, beta, eps = numbers
    if eps < 0:
        raise ValueError(f"expected eps >= 0, got {eps:g}")
    made = four(values, gamma, beta, eps)
    if not all(math.isfinite(value) for value in made["y"]):
        raise ValueError("the outputs are not finite")
    return made


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or abs(value) > 1e100:
        raise ValueError(f"expected finite numbers, got {value!r:.40}")
    return float(value)
