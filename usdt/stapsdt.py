# SPDX-License-Identifier: MIT
"""The API of python-stapsdt, for programs that use it: `from usdt import stapsdt`.

The same calls with its mistakes mended: see docs/migrating.md. New programs use `usdt` itself.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import usdt
from stubgen import spec

__all__ = ["ArgTypes", "Probe", "Provider"]


class ArgTypes(IntEnum):
    """Argument types by signed width in bytes."""

    noarg = 0
    uint8 = 1
    int8 = -1
    uint16 = 2
    int16 = -2
    uint32 = 4
    int32 = -4
    uint64 = 8
    int64 = -8


class Provider:
    """A provider of probes; `load()` makes those added so far visible to tracers."""

    def __init__(self, name: str) -> None:
        self._provider = usdt.Provider(name)

    def __str__(self) -> str:
        return self._provider.name

    def add_probe(self, name: str, *args: ArgTypes) -> Probe:
        """A new probe; probes added after load() need another load(). Raises usdt.SpecError."""
        types = [ArgTypes(arg) for arg in args]
        if ArgTypes.noarg in types:
            raise usdt.SpecError(f"probe {name!r}: noarg is not a type, leave the argument out")
        # 64-bit arguments may be strings: this API has no type of its own for them.
        description = spec.Probe(
            name,
            tuple(
                spec.Arg(f"arg{i}", f"{'u' if t > 0 else 'i'}{abs(t) * 8}")
                for i, t in enumerate(types)
            ),
        )
        codes = "".join(
            "w" if abs(t) == 8 else arg.type.code
            for t, arg in zip(types, description.args, strict=True)
        )
        return Probe(self._provider._declare(description, codes=codes))

    def load(self) -> bool:
        """True when the probes are visible to tracers."""
        return self._provider.load()

    def unload(self) -> bool:
        """Take the probes away from tracers."""
        self._provider.unload()
        return True


class Probe:
    """A probe as `Provider.add_probe` returns it."""

    def __init__(self, probe: usdt.Probe[...]) -> None:
        self._probe = probe

    def fire(self, *args: Any) -> bool:
        """Fire; True if somebody listened. Raises TypeError for a wrong number of arguments."""
        listening = bool(self._probe)
        self._probe(*args)
        return listening

    @property
    def is_enabled(self) -> bool:
        """Whether somebody listens."""
        return bool(self._probe)
