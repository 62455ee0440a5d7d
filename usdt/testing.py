# SPDX-License-Identifier: MIT
"""capture(): see in a test what a tracer would see, with no tracer, root or stub.

Works on the fire path of this process only; what real tracers print is tests/trace's business.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from usdt import provider as _provider

if TYPE_CHECKING:
    from collections.abc import Iterator

    from usdt import Probe

__all__ = ["Event", "capture"]


class Event(NamedTuple):
    """One fired probe: provider and probe name, and its arguments by name, in order."""

    provider: str
    name: str
    args: dict[str, Any]

    def __str__(self) -> str:
        values = "".join(f" {name}={value!r}" for name, value in self.args.items())
        return f"{self.provider}:{self.name}{values}"


@contextmanager
def capture() -> Iterator[list[Event]]:
    """Collect the events of all providers, loaded or not, while the block runs.

    Inside, every probe is enabled, so `if probe:` and `probe.lazy` run as they do under a tracer;
    a value that does not fit is dropped as it would be there (`usdt.strict()` makes it raise).

        with usdt.testing.capture() as events:
            place_order(42)
        assert events[0].args == {"id": 42, "customer": "ada"}
    """
    events: list[Event] = []
    outer = _provider._listener

    def hear(probe: Probe[...], values: tuple[Any, ...]) -> None:
        # A buffer may be reused by the time the test looks at it.
        kept = (bytes(v) if isinstance(v, bytearray | memoryview) else v for v in values)
        names = (arg.name for arg in probe.spec.args)
        args = dict(zip(names, kept, strict=True))
        events.append(Event(probe.provider.name, probe.spec.name, args))
        if outer is not None:
            outer(probe, values)

    _provider.listen(hear)
    try:
        yield events
    finally:
        _provider.listen(outer)
