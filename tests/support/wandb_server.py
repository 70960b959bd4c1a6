"""As much of a Weights & Biases server as ``wandb sync`` talks to: it takes runs, and counts how often."""

from __future__ import annotations

import contextlib
import gzip
import json
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class WandbServer:
    """Attributes: `address`; `runs`, by run how it ended and what its files hold; `uploads`, how often each came."""

    address: str = ""
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    uploads: Counter[str] = field(default_factory=Counter)

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        parts = path.strip("/").split("/")
        if parts[0] == "graphql":
            return {"data": self._graphql(body["query"], body.get("variables") or {})}
        if parts[-1] == "file_stream":
            run = self.runs[parts[3]]
            for name, lines in (body.get("files") or {}).items():
                kept = run.setdefault(name, [])
                kept[lines["offset"] :] = lines["content"]  # from there on, as the server does
            if body.get("complete"):
                run["exit_code"] = body["exitcode"]
                self.uploads[parts[3]] += 1
        return {}

    def _graphql(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        if "upsertBucket" in query:
            run = self.runs.setdefault(given["name"], {})
            run |= {"project": given["project"], "group": given.get("groupName") or run.get("group")}
            entity = {"id": "e", "name": given.get("entity") or "me"}
            project = {"id": "p", "name": given["project"], "entity": entity}
            bucket = {"id": "b", "name": given["name"], "displayName": "", "config": "{}", "historyLineCount": 0}
            return {"upsertBucket": {"bucket": {**bucket, "project": project}, "inserted": True}}
        if "createRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.address}/up/{name}"} for name in given["files"]]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        return {"viewer": {"id": "u", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}},
                "serverInfo": {"features": []}}  # fmt: skip


@contextlib.contextmanager
def wandb_server(port: int = 0) -> Iterator[WandbServer]:
    """Yield a server that answers as long as the context lasts."""
    made = WandbServer()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
            plain = self.path.startswith("/up/")
            answer = json.dumps({} if plain else made.answer(self.path, json.loads(body or b"{}"))).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_PUT = do_GET = do_POST  # noqa: N815 (names of the library)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    made.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
