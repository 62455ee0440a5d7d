# SPDX-License-Identifier: MIT
"""The nop kind follows from kernel and machine, and the kernel is asked only where it is safe.

Every row is a machine that this one pretends to be; attaching is tests/trace's business.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import types

import pytest

from stubgen.arch import MACHINES
from usdt import _nop, _probe

NO_FILTER = b"Name:\tpython\nSeccomp:\t0\nSeccomp_filters:\t0\n"
FILTER = b"Name:\tpython\nSeccomp:\t2\nSeccomp_filters:\t1\n"
STRICT = b"Name:\tpython\nSeccomp:\t1\n"
KERNEL_WITHOUT_SECCOMP = b"Name:\tpython\nSpeculation_Store_Bypass:\tvulnerable\n"
FORGED = b"Name:\tSeccomp:\t0\nSeccomp:\t2\n"  # a process names itself

ROWS = [
    # machine, release, status, errno of uprobe(2) or None: must not be called; kind
    ("x86_64", "6.18.0", NO_FILTER, errno.ENXIO, "nop5"),
    ("x86_64", "6.18.44-fc-v657", NO_FILTER, errno.ENXIO, "nop5"),
    ("x86_64", "6.18-rc1", NO_FILTER, errno.ENXIO, "nop5"),
    ("x86_64", "7.0.1", NO_FILTER, errno.ENXIO, "nop5"),
    ("x86_64", "6.100.0", NO_FILTER, errno.ENXIO, "nop5"),
    ("x86_64", "6.18.0", NO_FILTER, errno.ENOSYS, "nop1"),
    ("x86_64", "6.19.0", NO_FILTER, errno.EPROTO, "nop1"),
    ("x86_64", "6.19.0", NO_FILTER, 0, "nop1"),
    ("x86_64", "6.17.99", NO_FILTER, None, "nop1"),
    ("x86_64", "6.9.0", NO_FILTER, None, "nop1"),
    ("x86_64", "6.1.0-13-amd64", NO_FILTER, None, "nop1"),
    ("x86_64", "5.19.0", NO_FILTER, None, "nop1"),
    ("x86_64", "2.6.32-754.el6.x86_64", FILTER, None, "nop1"),
    ("x86_64", "5.10.0", FILTER, None, "nop1"),
    ("x86_64", "6.18.0", FILTER, None, "nop5"),
    ("x86_64", "6.18.0", STRICT, None, "nop5"),
    ("x86_64", "6.18.0", KERNEL_WITHOUT_SECCOMP, None, "nop5"),
    ("x86_64", "6.18.0", FORGED, None, "nop5"),
    ("x86_64", "6.18.0", None, None, "nop5"),  # no /proc
    ("x86_64", "", NO_FILTER, None, "nop1"),
    ("x86_64", "six", NO_FILTER, None, "nop1"),
    ("x86_64", "6", NO_FILTER, None, "nop1"),
    ("x86_64", "6.x", NO_FILTER, None, "nop1"),
    ("aarch64", "6.18.0", NO_FILTER, None, "nop1"),
    ("aarch64", "5.10.0", FILTER, None, "nop1"),
]


@pytest.mark.parametrize(("machine", "release", "status", "answer", "kind"), ROWS)
def test_the_kind_follows_from_the_machine(
    monkeypatch: pytest.MonkeyPatch, machine: str, release: str, status: bytes | None,
    answer: int | None, kind: str,
) -> None:  # fmt: skip
    """uprobe(2) is called from Linux 6.18 on, on x86-64, and only if no filter can be there."""
    asked = []

    def uprobe_syscall() -> int:
        asked.append(1)
        assert answer is not None
        return answer

    def opened(path: str, *args: object, **kwargs: object) -> io.BytesIO:
        assert path.startswith("/proc/")
        if status is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return io.BytesIO(status)

    system = types.SimpleNamespace(machine=machine, release=release)
    monkeypatch.setattr(os, "uname", lambda: system)
    monkeypatch.setattr(_probe, "uprobe_syscall", uprobe_syscall)
    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", opened)
        chosen, reason = _nop.fastest()
    assert chosen == kind
    assert chosen in MACHINES[machine].nops
    assert reason
    assert "\n" not in reason
    assert len(asked) == (0 if answer is None else 1)


def test_this_machine_has_one_answer() -> None:
    """The choice is the same twice, and a kind of this machine's row."""
    kind, _ = _nop.fastest()
    assert kind == _nop.fastest()[0]
    assert kind in MACHINES[os.uname().machine].nops


def test_the_system_call_is_harmless() -> None:
    """Called for real it returns an error number and nothing happens."""
    if os.uname().machine == "x86_64" and _nop._version(os.uname().release) >= (6, 18):
        assert _probe.uprobe_syscall() in (errno.ENXIO, errno.ENOSYS, errno.EPROTO)
    else:
        assert _nop.fastest()[0] == "nop1"


def test_a_process_under_a_filter_agrees_with_the_others(python: object) -> None:
    """A seccomp filter that kills for uprobe(2) neither kills the program nor changes its path."""
    if os.uname().machine != "x86_64":
        pytest.skip("the filter below is x86-64 machine code numbers")
    program = """
import ctypes, os, struct
import usdt
shop = usdt.Provider("shop", nop="fastest")
shop.add_probe("order")
if os.environ["FILTER"] == "1":
    # BPF: load nr; if it is 336 kill the process; allow. linux/seccomp.h, linux/filter.h
    rows = [(0x20, 0, 0, 0), (0x15, 0, 1, 336), (0x06, 0, 0, 0x80000000), (0x06, 0, 0, 0x7FFF0000)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *row) for row in rows))
    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    wanted = Program(len(rows), ctypes.addressof(code))
    assert libc.prctl(22, 2, ctypes.byref(wanted)) == 0  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
assert shop.load()
print(shop.paths[0])
"""
    assert python(program, FILTER="1") == python(program, FILTER="0")
