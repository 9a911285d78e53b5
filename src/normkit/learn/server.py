"""The page on 127.0.0.1, and normkit's answers for values that its reader chooses. Standard library only.

Rules: the loopback interface alone; GET / is the page, POST /compute a question of a section (`answers`), POST /own a
.npz (`own`), nothing else is served, no file is opened. A request names this host (else a site could reach us by a name
that it points here) and comes from no other origin; a question is at most 512 KiB, a .npz 32 MiB.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from .. import _reading
from ..errors import UsageError
from .answers import answer
from .numbers import maps
from .own import read

HOST = "127.0.0.1"
LARGEST = {"/compute": 1 << 19, "/own": 1 << 25}  # bytes of a request: 12,800 values; some pictures


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
        elif self.path not in LARGEST:
            self._answer(404, b"only /compute and /own are here", "text/plain")
        else:
            try:
                made = json.dumps(self._made(), allow_nan=False).encode()
            except ValueError as error:
                self._answer(400, str(error).encode(), "text/plain; charset=utf-8")
            else:
                self._answer(200, made, "application/json")

    def _made(self) -> dict[str, Any]:
        body = self._body()
        if self.path == "/compute":
            return answer(_reading.parse(body.decode("utf-8")))
        own = read(body)
        return {
            "maps": None if own.images is None else maps(own.images),
            "values": None if own.values is None else own.values.tolist(),
        }

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal keeps the address."""

    def _ours(self) -> bool:
        here = {f"{name}:{self.server.server_port}" for name in (HOST, "localhost")}
        origin = self.headers.get("Origin")
        return self.headers.get("Host") in here and (origin is None or origin.removeprefix("http://") in here)

    def _body(self) -> bytes:
        length, most = self.headers.get("Content-Length", ""), LARGEST[self.path]
        if not length.isascii() or not length.isdigit() or len(length) > 9 or int(length) > most:
            raise ValueError(f"expected a body of at most {most:,} bytes")
        return self.rfile.read(int(length))

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
