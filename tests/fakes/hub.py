"""A Hugging Face hub with one repository, on loopback: answers what `huggingface_hub` asks, and notes it."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """Serves `files` of `org/tiny` at COMMIT. Tests may change what it says between requests."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.asked: list[str] = []
        """Names of the files that were downloaded, in order."""
        self.promised_sha256: dict[str, str] = {}
        """Told instead of the true hash."""
        self.status: int | None = None
        """Answered to everything, when set."""
        self.error_code: str | None = None
        """The hub's own name for what is wrong, sent along with `status`."""
        self.cut_after: dict[str, int] = {}
        """The connection breaks after that many bytes of the file, once."""
        self.url = ""

    def info(self) -> dict[str, Any]:
        siblings = []
        for name, data in self.files.items():
            sibling: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": hashlib.sha1(data).hexdigest()}
            if name.endswith(".safetensors"):
                sha256 = self.promised_sha256.get(name, hashlib.sha256(data).hexdigest())
                sibling["lfs"] = {"sha256": sha256, "size": len(data), "pointerSize": 130}
            siblings.append(sibling)
        return {"id": "org/tiny", "modelId": "org/tiny", "sha": COMMIT, "siblings": siblings, "tags": []}


@contextmanager
def running(hub: FakeHub) -> Iterator[FakeHub]:
    """Serve until the block ends; `hub.url` says where."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            if hub.status is not None:
                return self.answer(hub.status, b"{}", **({"X-Error-Code": hub.error_code} if hub.error_code else {}))
            if path in (
                "/api/models/org/tiny",
                f"/api/models/org/tiny/revision/{COMMIT}",
                "/api/models/org/tiny/revision/v1",
            ):
                return self.answer(200, json.dumps(hub.info()).encode(), **{"Content-Type": "application/json"})
            if path.startswith(start := f"/org/tiny/resolve/{COMMIT}/") and path.removeprefix(start) in hub.files:
                return self.file(path.removeprefix(start))
            code = "EntryNotFound" if path.startswith("/org/tiny/") else "RepoNotFound"
            if "/revision/" in path and path.startswith("/api/models/org/tiny/"):
                code = "RevisionNotFound"
            return self.answer(404, b"{}", **{"X-Error-Code": code})

        def file(self, name: str) -> None:
            data = hub.files[name]
            etag = hub.info()["siblings"][list(hub.files).index(name)]
            first = 0
            if asked := self.headers.get("Range"):
                first = int(asked.removeprefix("bytes=").split("-")[0])
            if self.command == "GET":
                hub.asked.append(name)
            headers = {
                "ETag": f'"{etag["lfs"]["sha256"] if "lfs" in etag else etag["blobId"]}"',
                "X-Repo-Commit": COMMIT,
                "Accept-Ranges": "bytes",
            }
            if first:
                headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
            cut = hub.cut_after.pop(name, None) if self.command == "GET" else None
            self.answer(206 if first else 200, data[first:], cut=cut, **headers)

        def answer(self, status: int, body: bytes, *, cut: int | None = None, **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body if cut is None else body[:cut])
            if cut is not None:
                self.wfile.flush()
                self.close_connection = True
                self.connection.shutdown(2)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
