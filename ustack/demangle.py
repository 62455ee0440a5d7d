# SPDX-License-Identifier: MIT
"""Linker names of C++ and Rust functions -> what their source calls them; other names as they are.

Owns which library is asked, and remembers its answers. Must not know where names come from.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from typing import Any

__all__ = ["demangle"]

# The runtimes that define __cxa_demangle (Itanium C++ ABI, 3.4); one of them is nearly everywhere.
_CXX_LIBRARIES = ("libstdc++.so.6", "libc++abi.so.1")

# Time and stack of a demangler grow with the name, which may come from a hostile file.
_MAX_NAME = 1 << 13

_RUST_HASH = re.compile(r"::h[0-9a-f]{16}\b")
_RUST_GUARD = re.compile(r"(^|::)_\$")  # before an escape that begins a name
_RUST_ESCAPE = re.compile(r"\$(?:u([0-9a-f]{1,6})|(SP|BP|RF|LT|GT|LP|RP|C))\$")
_RUST_ESCAPES = {
    "SP": "@", "BP": "*", "RF": "&", "LT": "<", "GT": ">", "LP": "(", "RP": ")", "C": ",",
}  # fmt: skip


@lru_cache(maxsize=1 << 16)
def demangle(name: str) -> str:
    """The name for people; the name itself where it is not mangled or nothing can read it.

    N.B. Rust's v0 names (_R…) need the package `rust-demangler`, of the `tools` extra.
    """
    base, at, stub = name.partition("@")
    if not name.startswith(("_Z", "_R", "__Z")) or len(name) > _MAX_NAME:
        return name
    if base.startswith("_R"):
        base, dot, clone = base.partition(".")
        return (_rust()(base) or base) + dot + clone + at + stub
    shown = _cxx()(base)
    if shown is None:
        return name
    if _RUST_HASH.search(shown):
        shown = _RUST_GUARD.sub(r"\1$", _RUST_HASH.sub("", shown)).replace("..", "::")
        shown = _RUST_ESCAPE.sub(_unescape, shown)
    return shown + at + stub


def _unescape(match: re.Match[str]) -> str:
    code, word = match.groups()
    if code is None:
        return _RUST_ESCAPES[word]
    number = int(code, 16)
    return chr(number) if 0x20 <= number < 0xD800 else match[0]


def _unread(_: str) -> None:
    return None


@lru_cache(maxsize=1)
def _cxx() -> Callable[[str], str | None]:
    for library in _CXX_LIBRARIES:
        try:
            function = ctypes.CDLL(library).__cxa_demangle
            free = ctypes.CDLL(None).free
        except (OSError, AttributeError):
            continue
        return _cxx_reader(function, free)
    return _unread


def _cxx_reader(function: Any, free: Any) -> Callable[[str], str | None]:
    function.restype = ctypes.c_void_p
    function.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    free.argtypes, free.restype = [ctypes.c_void_p], None

    def read(name: str) -> str | None:
        text = function(name.encode(), None, None, None)
        if not text:
            return None
        shown = ctypes.string_at(text).decode("utf-8", "backslashreplace")
        free(text)
        return shown

    return read


@lru_cache(maxsize=1)
def _rust() -> Callable[[str], str | None]:
    try:
        function = import_module("rust_demangler").demangle
    except ImportError:
        return _unread

    def read(name: str) -> str | None:
        try:
            return str(function(name))
        except Exception:  # it raises whatever its parsing trips over
            return None

    return read
