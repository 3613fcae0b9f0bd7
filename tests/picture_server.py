"""A local web server with pictures that misbehaves in every way."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from fakes import save_picture


class Server(ThreadingHTTPServer):
    """/ok/N: picture N; /after/N/T: at the T-th try; /slow/N, /moved/..., /big, /drop, /404, ..."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.asked = folder, Counter[str]()
        self.lock, self.open, self.most = threading.Lock(), 0, 0

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a client that had enough hung up
            super().handle_error(request, client_address)

    def address(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        with server.lock:
            server.asked[self.path] += 1
            asked = server.asked[self.path]
        self.answer(self.path.strip("/").split("/"), asked)

    def answer(self, parts: list[str], asked: int) -> None:
        kind = parts[0]
        if kind == "slow":
            self.wait()
        if kind == "after" and asked < int(parts[2]):
            self.send_response(503)
            self.send_header("Retry-After", "1")
            self.end_headers()
        elif kind == "drop":
            self.close_connection = True  # without a word
        elif kind == "moved":
            self.send_response(302)
            self.send_header("Location", "/" + "/".join(parts[1:]))
            self.end_headers()
        elif kind.isdecimal():
            self.send_response(int(kind))
            self.end_headers()
        elif kind == "big":
            self.body(b"x" * 200_000)
        elif kind == "endless":
            self.send_response(200)
            self.end_headers()
            for _ in range(1000):
                self.wfile.write(b"x" * 10_000)
        elif kind == "drip":
            self.send_response(200)
            self.send_header("Content-Length", "90000")
            self.end_headers()
            for _ in range(100):
                self.wfile.write(b"x")
                time.sleep(0.05)
        elif kind == "text":
            self.body(b"<html>no picture</html>")
        else:
            self.body((self.server.folder / f"{parts[1]}.png").read_bytes())

    def wait(self) -> None:
        """Counted until the answer begins: after its end the next request may be here."""
        server = self.server
        with server.lock:
            server.open += 1
            server.most = max(server.most, server.open)
        time.sleep(0.03)
        with server.lock:
            server.open -= 1

    def body(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """A server of 20 pictures, which it makes in a folder: 0.png, 1.png, ..."""
    for number in range(20):
        save_picture(folder / f"{number}.png", number)
    with Server(folder) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()
