# SPDX-License-Identifier: MIT
"""`usdt doctor`: what of this machine tracing needs, what is there, and what mends the rest.

Looks at files, bits and versions, and guesses nothing from the name of a container. Works
without root, without bpftrace and without pyelftools.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from usdt import bpftrace

__all__ = ["Check", "checks"]

#: Bits of CapEff in /proc/PID/status; linux/capability.h.
_CAPABILITIES = {"CAP_SYS_ADMIN": 21, "CAP_PERFMON": 38, "CAP_BPF": 39}

_TRACEFS = "/sys/kernel/tracing"
_UPROBES = "/sys/bus/event_source/devices/uprobe"


@dataclass(frozen=True, slots=True)
class Check:
    """One line. fix: the command that mends it; required: nothing can be traced without it."""

    name: str
    ok: bool
    found: str
    fix: str | None = None
    required: bool = True


def checks() -> list[Check]:
    """Everything, in the order in which it is worth mending."""
    return [
        *_program(),
        *_kernel(),
        *_privilege(),
        *_tracers(),
        *_directories(),
    ]


def _program() -> Iterator[Check]:
    version = platform.python_version()
    yield Check("python", True, f"{platform.python_implementation()} {version}")
    try:
        from usdt import _nop, _probe  # noqa: F401
    except ImportError as error:
        yield Check(
            "extension",
            False,
            f"usdt._probe does not load: {error}",
            f"{sys.executable} -m pip install --force-reinstall usdt-toolkit",
        )
    else:
        yield Check("extension", True, "usdt._probe loads")
        kind, reason = _nop.fastest()
        yield Check("nop", True, f"nop1 unless asked otherwise; fastest: {kind}: {reason}")
    found = importlib.util.find_spec("elftools") is not None
    yield Check(
        "pyelftools",
        found,
        "installed" if found else "not installed: no `usdt list`, `usdt trace`",
        "pip install 'usdt-toolkit[tools]'",
    )


def _kernel() -> Iterator[Check]:
    system = os.uname()
    linux = system.sysname == "Linux"
    yield Check(
        "kernel",
        linux,
        f"{system.sysname} {system.release} {system.machine}",
        "use Linux: elsewhere probes do nothing",
    )
    uprobes = os.path.exists(_UPROBES)
    yield Check(
        "uprobes",
        uprobes,
        "the kernel has them" if uprobes else f"no {_UPROBES}",
        "boot a kernel with CONFIG_UPROBE_EVENTS=y (grep UPROBE /boot/config-$(uname -r))",
    )
    # Present wherever bpf(2) is, whoever may use it.
    path = "/proc/sys/kernel/unprivileged_bpf_disabled"
    bpf = os.path.exists(path)
    yield Check(
        "bpf",
        bpf,
        "the kernel has it" if bpf else f"no {path}",
        "boot a kernel with CONFIG_BPF_SYSCALL=y (grep BPF_SYSCALL /boot/config-$(uname -r))",
    )
    btf = os.path.exists("/sys/kernel/btf/vmlinux")
    yield Check(
        "btf",
        btf,
        "the kernel has it" if btf else "no /sys/kernel/btf/vmlinux; probes of programs need none",
        "boot a kernel with CONFIG_DEBUG_INFO_BTF=y",
        required=False,
    )
    yield _lockdown()
    tracefs = os.path.isdir(f"{_TRACEFS}/events")
    hidden = os.path.isdir(_TRACEFS) and not os.access(_TRACEFS, os.X_OK)
    yield Check(
        "tracefs",
        tracefs or hidden,
        "mounted"
        if tracefs
        else "visible to root only"
        if hidden
        else "not mounted; perf wants it",
        f"sudo mount -t tracefs tracefs {_TRACEFS}",
        required=False,
    )


def _lockdown() -> Check:
    """lockdown=confidentiality keeps BPF programs from reading memory; kernel_lockdown(7)."""
    text = _read("/sys/kernel/security/lockdown")
    mode = text.partition("[")[2].partition("]")[0] or "none"
    return Check(
        "lockdown",
        mode != "confidentiality",
        mode,
        "boot without lockdown=confidentiality",
    )


def _privilege() -> Iterator[Check]:
    effective = 0
    for line in _read("/proc/self/status").splitlines():
        if line.startswith("CapEff:"):
            effective = int(line.split()[1], 16)
    have = [name for name, bit in _CAPABILITIES.items() if effective >> bit & 1]
    enough = "CAP_SYS_ADMIN" in have or {"CAP_BPF", "CAP_PERFMON"} <= set(have)
    root = os.geteuid() == 0
    yield Check(
        "capabilities",
        enough,
        " ".join(have) or "none of " + " ".join(_CAPABILITIES),
        # root without the bits is a container's root
        "start the container with --cap-add=SYS_ADMIN, or trace on its host"
        if root
        else "sudo usdt doctor",
    )
    yield Check("root", root, f"uid {os.geteuid()}", "sudo usdt doctor")
    level = _read("/proc/sys/kernel/perf_event_paranoid").strip()
    if level:
        # Above 2 are distributions' own levels, for which CAP_PERFMON may not be enough.
        yield Check(
            "perf_event_paranoid",
            root or level not in ("3", "4"),
            level,
            "sudo sysctl kernel.perf_event_paranoid=2",
            required=False,
        )


def _tracers() -> Iterator[Check]:
    path = shutil.which("bpftrace")
    fix = "sudo apt-get install bpftrace"
    if path is None:
        yield Check("bpftrace", False, "not found", fix)
        return
    version = bpftrace.version_of(path)
    shown = ".".join(map(str, version)) or "of unknown version"
    oldest = ".".join(map(str, bpftrace.OLDEST))
    if version[:2] >= bpftrace.OLDEST:
        yield Check("bpftrace", True, f"{shown} {path}")
    else:
        yield Check("bpftrace", False, f"{shown} {path}, and {oldest} is needed", fix)


def _directories() -> Iterator[Check]:
    try:
        from usdt.stubfile import directories, open_directory
    except ImportError:
        return  # the extension's line has said why
    usable = False
    for path in directories():
        # Not made here: doctor changes nothing. What load() would make in a parent that we may
        # write to counts as usable.
        exists = os.path.lexists(path)
        target = path if exists else os.path.dirname(path)
        reason = ""
        try:
            if exists:
                os.close(open_directory(path, create=False))
            elif os.statvfs(target).f_flag & os.ST_NOEXEC:
                reason = "is on a file system mounted noexec"
            if not reason and not os.access(target, os.W_OK):
                reason = "is not writable by us"
        except OSError as error:
            reason = error.strerror or str(error)
        found = reason or ("usable" if exists else "usable, made at the first load()")
        yield Check(
            f"directory {path}",
            not reason,
            found,
            None if usable else "export USDT_STUB_DIR=DIR, one that you own and that is not noexec",
            required=False,
        )
        usable = usable or not reason
    if not usable:
        yield Check(
            "directories",
            False,
            "no stub directory is usable; each process keeps its stub to itself",
            "export USDT_STUB_DIR=DIR, one that you own and that is not noexec",
            required=False,
        )


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
