# SPDX-License-Identifier: MIT
"""Listening without a tracer: a loaded stub's semaphore is written, or a recorder is attached.

Knows symbols and memory of this process; must not know what the tests fire or expect.
"""

from __future__ import annotations

import ctypes
import gc
from _ctypes import dlclose

from stubgen.stapsdt import semaphore_symbol
from usdt._probe import Probe, Stub

#: A stub in C that keeps what it is called with. `copy` is 1 for a string in the first operand,
#: 2 for bytes in the first two: a borrowed conversion is gone when the call has returned.
RECORDER = """
#include <stdint.h>
#include <string.h>
uint16_t on = 1;
uint32_t calls, copy;
uint64_t seen[12];
char data[4096];
void record(uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f,
            uint64_t g, uint64_t h, uint64_t i, uint64_t j, uint64_t k, uint64_t l)
{
    const uint64_t all[] = {a, b, c, d, e, f, g, h, i, j, k, l};
    memcpy(seen, all, sizeof seen);
    calls++;
    if (copy == 1)
        strncpy(data, (const char *)a, sizeof data - 1);
    else if (copy == 2)
        memcpy(data, (const char *)a, b < sizeof data ? b : sizeof data);
}
"""


def force(probe: Probe[...], value: int = 1) -> ctypes.c_uint16:
    """Set the semaphore of a loaded probe, as the kernel does for a tracer; valid while loaded."""
    symbol = semaphore_symbol(probe.provider.spec, probe.spec)
    for path in probe.provider.paths:
        library = ctypes.CDLL(path)
        try:
            address = ctypes.addressof(ctypes.c_uint16.in_dll(library, symbol))
        except ValueError:
            continue
        finally:
            dlclose(library._handle)  # no reference of ours may keep the stub mapped
        semaphore = ctypes.c_uint16.from_address(address)
        semaphore.value = value
        return semaphore
    raise AssertionError(f"{probe!r} is in none of {probe.provider.paths}")


def mappings(name: str) -> list[str]:
    """The lines of /proc/self/maps that name `name`, after a full collection."""
    gc.collect()
    with open("/proc/self/maps") as maps:
        return [line for line in maps if name in line]


class Recorder:
    """The compiled `RECORDER`: attach probes to it, fire them, read the words."""

    def __init__(self, path: str) -> None:
        self.stub = Stub(path)
        library = ctypes.CDLL(path)
        self._calls = ctypes.c_uint32.in_dll(library, "calls")
        self._copy = ctypes.c_uint32.in_dll(library, "copy")
        self._seen = (ctypes.c_uint64 * 12).in_dll(library, "seen")
        self._data = (ctypes.c_char * 4096).in_dll(library, "data")

    def attach(self, probe: Probe[...], copy: int = 0) -> None:
        """Be the stub of `probe` from now on."""
        self._calls.value = 0
        self._copy.value = copy
        ctypes.memset(self._data, 0, 4096)
        probe._attach(self.stub, "record", "on")

    @property
    def calls(self) -> int:
        """How often the stub was called since `attach`."""
        return self._calls.value

    @property
    def words(self) -> list[int]:
        """The twelve operands of the last call; those beyond the probe's own mean nothing."""
        return list(self._seen)

    @property
    def text(self) -> bytes:
        """The string in the first operand, up to its NUL."""
        return ctypes.string_at(self._data)

    def bytes(self) -> bytes:
        """The bytes in the first two operands."""
        return self._data.raw[: self._seen[1]]
