"""A server on the loopback address that gives files as good and bad hosts do."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

PAGE = b"<!DOCTYPE html><html><title>Not here any more</title></html>"


@dataclass
class Hosted:
    """One file and how its host behaves.

    breaks_after: bytes of a body that are sent before the connection closes. has_ranges: whether it gives a part of
    the file. length: what it says of the size, where that is a lie; 0: nothing. kind: the content type. shift: by how
    many bytes the part that it gives lies off the one that it was asked for.
    """

    data: bytes
    breaks_after: int | None = None
    has_ranges: bool = True
    length: int | None = None
    kind: str = "application/zip"
    shift: int = 0


@dataclass
class Server:
    """The files by path, and the requests that came: path and the range that was asked for."""

    address: str
    files: dict[str, Hosted] = field(default_factory=dict)
    asked: list[tuple[str, str | None]] = field(default_factory=list)

    def host(self, path: str, data: bytes, **behaviour: Any) -> str:
        """Host a file and return its address."""
        self.files[path] = Hosted(data, **behaviour)
        return f"{self.address}{path}"


@contextmanager
def serve() -> Iterator[Server]:
    """Run the server for the block."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.asked.append((self.path, self.headers["Range"]))
            file = server.files.get(self.path)
            if file is None:
                self.send_error(404)
                return
            start, end = 0, len(file.data)
            if file.has_ranges and self.headers["Range"]:
                start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
                if start >= end:
                    self.send_error(416)
                    return
                start += file.shift
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{end}")
            else:
                self.send_response(200)
            body = file.data[start:]
            if file.length != 0:
                self.send_header("Content-Length", str(file.length or len(body)))
            self.send_header("Content-Type", file.kind)
            self.end_headers()
            self.wfile.write(body[: file.breaks_after])

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as host:
        server = Server(f"http://127.0.0.1:{host.server_port}")
        threading.Thread(target=host.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        host.shutdown()
