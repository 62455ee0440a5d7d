# SPDX-License-Identifier: MIT
"""The shop: a small HTTP service on 127.0.0.1 that fires probes from its handlers.

Knows nothing of tracers: it is the same program whether somebody listens or not. Started as a
program it prints one JSON line (port, pid, stubs, why_not) and serves until it is stopped.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TypeAlias

from probes import order_placed, request_done, request_start, shop

Answer: TypeAlias = "tuple[int, object]"

_ids = itertools.count(1)  # next() on it is atomic


def welcome(number: int, body: bytes) -> Answer:
    return 200, {"hello": "shop"}


def place_order(number: int, body: bytes) -> Answer:
    order = json.loads(body)
    time.sleep(0.001 * (1 + number % 6))  # what a database would take
    order_placed(number, order["customer"], order["total"], order["express"])
    return 201, {"order": number}


def report(number: int, body: bytes) -> Answer:
    time.sleep(0.01 * (1 + number % 5))
    return 200, {"orders": "many"}


def broken(number: int, body: bytes) -> Answer:
    raise RuntimeError("this handler has a bug")


ROUTES = {
    ("GET", "/"): welcome,
    ("POST", "/orders"): place_order,
    ("GET", "/report"): report,
    ("GET", "/broken"): broken,
}


def answer(method: str, route: str, body: bytes) -> Answer:
    """Answer one request, and tell whoever listens about it."""
    number = next(_ids)
    start = time.perf_counter_ns()
    request_start(number, method, route)
    try:
        handler = ROUTES.get((method, route))
        status, content = handler(number, body) if handler else (404, {"error": "no such page"})
    except Exception as error:
        status, content = 500, {"error": str(error)}
    # Before the answer leaves: who has the answer can rely on the event having been fired.
    request_done(number, route, status, time.perf_counter_ns() - start)
    return status, content


def heard() -> Answer:
    """Which probes somebody listens to: a probe's truth value says so."""
    return 200, [probe.__name__ for probe in shop.probes if probe]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body in one segment, or Nagle's algorithm delays the second

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/listening":
            status, content = heard()
        else:
            status, content = answer(self.command, self.path, body)
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *args: object) -> None:
        pass  # the probes say it better


def make_server() -> ThreadingHTTPServer:
    """The service, on a free port of 127.0.0.1; its `server_port` says which."""
    return ThreadingHTTPServer(("127.0.0.1", 0), Handler)


def main() -> int:
    shop.load()
    with make_server() as server:
        start = {
            "port": server.server_port,
            "pid": os.getpid(),
            "stubs": shop.paths,
            "why_not": shop.why_not,
        }
        print(json.dumps(start), flush=True)
        with suppress(KeyboardInterrupt):
            server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
