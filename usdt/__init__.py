# SPDX-License-Identifier: MIT
"""USDT probes for Python programs, declared and loaded at run time.

    import usdt
    from usdt import u64

    shop = usdt.Provider("shop")

    @shop.probe
    def order_start(id: u64, customer: str) -> None: ...

    shop.load()
    order_start(42, "ada")

Light on purpose: importing it pulls in no third-party module and starts nothing.
"""

from __future__ import annotations

from stubgen.argtypes import BY_NAME
from stubgen.spec import SpecError

try:
    from usdt._probe import Probe
except ImportError as error:
    raise ImportError(
        f"usdt._probe is not built for this Python ({error}): run `pip install usdt-toolkit`, "
        "or `pip install -e .` in a checkout"
    ) from None
from usdt.provider import Provider, strict
from usdt.stubfile import LoadError

TYPE_CHECKING = False  # typing.TYPE_CHECKING without importing typing
if TYPE_CHECKING:
    # To a type checker an argument takes the Python value it is fired with.
    from typing import TypeAlias

    i8: TypeAlias = int
    i16: TypeAlias = int
    i32: TypeAlias = int
    i64: TypeAlias = int
    u8: TypeAlias = int
    u16: TypeAlias = int
    u32: TypeAlias = int
    u64: TypeAlias = int
    ptr: TypeAlias = int
    f32: TypeAlias = float
    f64: TypeAlias = float
else:
    i8, i16, i32, i64 = (BY_NAME[name] for name in ("i8", "i16", "i32", "i64"))
    u8, u16, u32, u64 = (BY_NAME[name] for name in ("u8", "u16", "u32", "u64"))
    f32, f64, ptr = (BY_NAME[name] for name in ("f32", "f64", "ptr"))

__all__ = [
    "LoadError",
    "Probe",
    "Provider",
    "SpecError",
    "f32",
    "f64",
    "i8",
    "i16",
    "i32",
    "i64",
    "ptr",
    "strict",
    "u8",
    "u16",
    "u32",
    "u64",
]
