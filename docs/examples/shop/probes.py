# SPDX-License-Identifier: MIT
"""The probes of the shop: what can be seen from outside while it serves.

Declarations only; where they are fired is service.py's business.
"""

import usdt
from usdt import f64, i32, u64

shop = usdt.Provider("shop")


@shop.probe
def request_start(id: u64, method: str, route: str) -> None:
    """A request has arrived."""


@shop.probe
def request_done(id: u64, route: str, status: i32, ns: u64) -> None:
    """Its answer is ready, `ns` nanoseconds later, and about to be sent."""


@shop.probe
def order_placed(id: u64, customer: str, total: f64, express: bool) -> None:
    """The request with this id has become an order."""
