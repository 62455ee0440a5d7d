# SPDX-License-Identifier: MIT
"""Which nop kind this kernel traces fastest, for providers that ask for it.

Not the default: see docs/support.md. Every process of a machine must come to the same answer,
because the kind is part of the stub's path; only the kernel and the CPU may enter.
"""

from __future__ import annotations

import errno
import os

from usdt import _probe

__all__ = ["fastest"]


def fastest() -> tuple[str, str]:
    """The nop kind that costs a traced program least here, and the reason in a few words."""
    system = os.uname()
    if system.machine != "x86_64":
        return "nop1", f"the only kind on {system.machine}"
    if _version(system.release) < (6, 18):
        return "nop1", f"Linux {system.release} traps at every site"
    if _seccomp_filter():
        # A filter may kill for a system call it does not know, so the kernel is not asked. By
        # its release it has the optimization, and exempts the trampoline's call from filters.
        return "nop5", f"Linux {system.release}; not asked, under a seccomp filter"
    if _probe.uprobe_syscall() == errno.ENXIO:
        return "nop5", f"Linux {system.release} turns the site into a call"
    return "nop1", f"Linux {system.release} does not turn 5-byte sites into calls"


def _version(release: str) -> tuple[int, int]:
    """(6, 18) for '6.18.44-arch1'; (0, 0) for a release that does not start so."""
    major, _, rest = release.partition(".")
    digits = ""
    for char in rest:
        if not char.isdigit():
            break
        digits += char
    return (int(major), int(digits)) if major.isdigit() and digits else (0, 0)


def _seccomp_filter() -> bool:
    """Whether a seccomp filter is in force, or cannot be ruled out (proc_pid_status(5))."""
    try:
        with open("/proc/thread-self/status", "rb") as status:
            return b"\nSeccomp:\t0\n" not in status.read()
    except OSError:
        return True
