# SPDX-License-Identifier: MIT
"""Profiles that every test of a writer is made with: a small service, hostile names, any at all.

Knows the nouns of `ustack`; what a format makes of them is each test's.
"""

from __future__ import annotations

import importlib
import os
from types import ModuleType

import pytest
from hypothesis import strategies as st

from ustack.frame import AbsAddr, Frame, Reason
from ustack.render import Profile, Sample

LIBC = "/usr/lib/x86_64-linux-gnu/libc.so.6"
APP = "/srv/shop/app.py"

START = Frame(
    "native", "_start", module="/usr/bin/python3.11", offset=33, address=AbsAddr(0x401021)
)
MODULE = Frame("python", "<module>", file=APP, line=120)
HANDLER = Frame("python", "handler", file=APP, line=41)
HANDLER_LATER = Frame("python", "handler", file=APP, line=44)
RENDER = Frame("jit", "LazyCompile:*render", file="/srv/shop/page.js", line=7)
READ = Frame("native", "read", module=LIBC, offset=14)
VFS_READ = Frame("kernel", "vfs_read", module="[kernel]", address=AbsAddr(0xFFFFFFFF81234567))
DELIVER = Frame("ruby", "Mailer#deliver", file="/srv/mail/mailer.rb", line=9)
VENDOR = tuple(
    Frame("native", None, module="/opt/libvendor.so", address=AbsAddr(at), why=Reason.NO_SYMBOLS)
    for at in (0x7F0000001000, 0x7F0000002000)
)
CUT = Frame("native", None, why=Reason.CUT)

#: 17 + 5 + 3 + 29 + 2 + 11 + 7 + 13 = 87 samples, of which 80 are the shop's.
SHOP = Profile(
    (
        Sample((START, MODULE, HANDLER, READ, VFS_READ), 17, pid=4242, tid=4242, comm="shop"),
        Sample((START, MODULE, HANDLER), 5, pid=4242, tid=4242, comm="shop"),
        Sample((START, MODULE, HANDLER_LATER), 3, pid=4242, tid=4243, comm="shop"),
        Sample((START, MODULE, HANDLER, HANDLER), 29, pid=4242, tid=4242, comm="shop"),
        Sample((CUT, VENDOR[0]), 2, pid=4242, tid=4242, comm="shop"),
        Sample((START, VENDOR[1]), 11, pid=4242, tid=4242, comm="shop"),
        Sample((START, DELIVER), 7, pid=5151, tid=5151, comm="mailer"),
        Sample((START, RENDER), 13, pid=4242, tid=4242, comm="shop"),
    ),
    title="shop: a service & its mailer",
    event="profile:hz:99",
    started=1_700_000_000_123_456_789,
    duration=10_000_000_000,
    period=10_101_010,
    lost=3,
)

#: What a function may be called, if somebody wants to break a page.
HOSTILE = [
    "</script><script>window.broken = 1</script>", "<!--<script>", "]]>", "&lt;&amp;&#x3c;", "\"'`",
    "a;b", "a\nb\r\n2", "nul\0nul", "\x1b[31mred", "\u2028\u2029\x85", "\ud800 alone", "\udcff",
    "\ufffe\uffff", "\U0001f4a3", "ends like_[k]", "\\x3b \\", "x" * 10_000, "",
    " ", "  two  words  ", "0x12 (unmapped)", "0x12 (cut: x)", "(cut)", "(nothing)", "-1", "a-7",
    "\u202egpj.exe", "e\u0301\u0301", "\u6f22\u5b57" * 40, "std::map<int, char>::operator[](int&&)",
]  # fmt: skip


def hostile() -> Profile:
    """A sample for each hostile name, which is also its file, module and thread."""
    return Profile(
        tuple(
            Sample(
                (Frame("python", name, file=name, module=name, line=3), Frame("kernel", name)),
                at + 1,
                pid=at,
                tid=at,
                comm=name,
            )
            for at, name in enumerate(HOSTILE)
        ),
        title=HOSTILE[0],
        event=HOSTILE[1],
    )


_KINDS = st.sampled_from(["kernel", "native", "jit", "python", "ruby"])
_NAMES = st.one_of(st.sampled_from(HOSTILE), st.text(max_size=9), st.sampled_from("abc"))
_SOME = st.none() | _NAMES
_ADDRESSES = st.none() | st.integers(0, 2**64 - 1).map(AbsAddr)


@st.composite
def frames(draw: st.DrawFn) -> Frame:
    """Named or not, of any kind, with hostile names among the others."""
    name = draw(_SOME)
    return Frame(
        draw(_KINDS),
        name,
        module=draw(_SOME),
        file=draw(_SOME),
        line=draw(st.none() | st.integers(1, 2**31)),
        offset=draw(st.none() | st.integers(0, 2**40)),
        address=draw(_ADDRESSES),
        why=draw(st.sampled_from(Reason)) if name is None else None,
    )


@st.composite
def profiles(draw: st.DrawFn) -> Profile:
    """Up to a dozen samples over a few frames, so that paths meet."""
    some = draw(st.lists(frames(), min_size=1, max_size=5))
    stacks = st.lists(st.sampled_from(some), max_size=6).map(tuple)
    ids = st.integers(0, 4_194_304)
    sample = st.builds(
        Sample,
        stacks,
        st.integers(0, 2**40),
        pid=ids,
        tid=ids,
        comm=_NAMES,
        time=st.none() | st.integers(0, 2**62),
    )
    return Profile(
        tuple(draw(st.lists(sample, max_size=12))),
        unit=draw(st.sampled_from(["samples", "ns"])),
        title=draw(_NAMES),
        event=draw(_NAMES),
        started=draw(st.none() | st.integers(0, 2**61)),
        duration=draw(st.integers(0, 2**50)),
        period=draw(st.integers(0, 10**9)),
        lost=draw(st.integers(0, 2**40)),
    )


def needed(module: str) -> ModuleType:
    """A Python package that only tests use; CI must have it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        package = "protobuf" if module.startswith("google.protobuf") else module
        message = f"needs {package}: pip install {package}"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
