"""A server on this machine that can cut, refuse and change its mind."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


class Server:
    """Serves `content` at every path. The attributes say how it misbehaves; `asked` holds the Range of each request."""

    def __init__(self):
        self.content, self.ranges, self.status, self.cuts, self.announce, self.kind = b"", True, None, [], True, "application/x-tar"
        self.asked = []
        handler = type(
            "Handler", (BaseHTTPRequestHandler,), {"do_GET": lambda handler: self.answer(handler), "log_message": lambda *_: None}
        )
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/file.bin"
        self.http.handle_error = lambda *_: None  # a client that hangs up is part of these tests
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def answer(self, handler):
        asked = handler.headers.get("Range")
        self.asked.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.ranges else 0
        status = self.status or (416 if start >= len(self.content) else 206 if start else 200)
        if status >= 400:
            return handler.send_error(status)
        body = self.content[start:]
        handler.send_response(status)
        handler.send_header("Content-Type", self.kind)
        if status == 206:
            handler.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        if self.announce:
            handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[: self.cuts.pop(0)] if self.cuts else body)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()
