# SPDX-License-Identifier: MIT
"""Stubs whose semaphores are 1 from the moment they are mapped, as under a tracer by path.

For programs that tests run, own-GIL subinterpreters too: it knows ELF offsets and no ctypes.
"""

from __future__ import annotations

from struct import unpack_from
from typing import Any

import stubgen


def always_on() -> None:
    """From now on every probe that this interpreter loads is listened to at once."""
    build = stubgen.build

    def enabled(*args: Any, **kwargs: Any) -> bytes:
        image = bytearray(build(*args, **kwargs))
        (e_shoff,) = unpack_from("<Q", image, 0x28)
        e_shnum, e_shstrndx = unpack_from("<HH", image, 0x3C)
        # sh_name, sh_type, sh_flags, sh_addr, sh_offset, sh_size
        headers = [unpack_from("<IIQQQQ", image, e_shoff + 64 * i) for i in range(e_shnum)]
        strings = headers[e_shstrndx][4]
        for name, _, _, _, offset, size in headers:
            if image[strings + name :].startswith(b".probes\0"):
                image[offset : offset + size] = b"\1\0" * (size // 2)
        return bytes(image)

    stubgen.build = enabled
