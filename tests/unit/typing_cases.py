# SPDX-License-Identifier: MIT
"""A decorated probe, and every wrong use of it that a type checker must find.

Never run: test_typing.py gives it to mypy, where an ignore that is not needed is an error.
"""

from collections.abc import Callable
from typing import assert_type

import usdt
from usdt import f32, i32, ptr, u64
from usdt.testing import Event, capture

shop = usdt.Provider("shop", stubs="stubs", nop="nop1")


@shop.probe
def order(id: u64, customer: str, price: f32 = 0.0, raw: bytes = b"") -> None: ...


@shop.probe
def tick() -> None: ...


@shop.probe  # type: ignore[arg-type]
def wrong_result(id: u64) -> int:
    return id


order(42, "ada")
order(42, "ada", 1.5, b"x")
order(42, customer="ada", raw=b"x")
order.fire(42, "ada", price=2)
tick()
callback: Callable[[int, str], None] = order
assert_type(order(1, "x"), None)
assert_type(order.enabled, bool)
assert_type(order.loaded, bool)
assert_type(order.dropped, int)
assert_type(order.provider, usdt.Provider)
assert_type(order.lazy(lambda: (1, "x", 0.0, b"")), None)
if order:
    order.lazy(lambda: (42, "ada", 0.0, b""))

order("42", "ada")  # type: ignore[arg-type]
order(42, 7)  # type: ignore[arg-type]
order(42, "ada", raw="text")  # type: ignore[arg-type]
order.fire(42, None)  # type: ignore[arg-type]
order()  # type: ignore[call-arg]
order(42, "ada", 0.0, b"", 5)  # type: ignore[call-arg]
order(42, custmer="ada")  # type: ignore[call-arg]
order.lazy((42, "ada"))  # type: ignore[arg-type]
order.dropped = 3  # type: ignore[misc]
tick(1)  # type: ignore[call-arg]

refund = shop.add_probe("refund", id=u64, reason=str, status=i32, where=ptr, note="str")
refund(42, "broken", 0, 0, "")
refund.fire(42, "broken")

assert_type(shop.load(), bool)
assert_type(shop.paths, tuple[str, ...])
assert_type(shop.why_not, str | None)
with shop as entered:
    assert_type(entered, usdt.Provider)
with capture() as events:
    assert_type(events, list[Event])
usdt.strict()
usdt.strict(False)
usdt.Provider(3)  # type: ignore[arg-type]
