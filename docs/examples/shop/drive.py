# SPDX-License-Identifier: MIT
"""The shop's customers: a fixed mix of requests, sent from a few threads.

Counts what it sent, which is the truth that the traced events are compared with. Knows the
service by its port only.
"""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection

CUSTOMERS = ("Ada", "Grace", "Zoë", "Edsger", "Barbara")

# Ten requests, again and again: mostly quick ones, one slow, one that fails.
MIX = (
    ("GET", "/"),
    ("POST", "/orders"),
    ("GET", "/"),
    ("POST", "/orders"),
    ("GET", "/report"),
    ("GET", "/"),
    ("POST", "/orders"),
    ("GET", "/broken"),
    ("GET", "/"),
    ("POST", "/orders"),
)


def drive(port: int, *, requests: int, threads: int = 4) -> Counter[str]:
    """Send `requests` requests; returns how many went to each route.

    Raises RuntimeError on an answer that the mix does not call for.
    """

    def send(first: int) -> Counter[str]:
        sent: Counter[str] = Counter()
        connection = HTTPConnection("127.0.0.1", port, timeout=30)
        for number in range(first, requests, threads):
            method, route = MIX[number % len(MIX)]
            body = None
            if method == "POST":
                customer = CUSTOMERS[number // 3 % len(CUSTOMERS)]
                order = {"customer": customer, "total": number + 0.75, "express": number % 3 == 0}
                body = json.dumps(order)
            connection.request(method, route, body)
            response = connection.getresponse()
            response.read()
            expected = {"/orders": 201, "/broken": 500}.get(route, 200)
            if response.status != expected:
                raise RuntimeError(f"{method} {route}: {response.status}, not {expected}")
            sent[route] += 1
        connection.close()
        return sent

    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(send, range(threads)), Counter())


def listening(port: int) -> list[str]:
    """The names of the service's probes that somebody listens to."""
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/listening")
    names: list[str] = json.loads(connection.getresponse().read())
    connection.close()
    return names
