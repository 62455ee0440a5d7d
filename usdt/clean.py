# SPDX-License-Identifier: MIT
"""Removes stubs that no process maps, and what interrupted writers have left.

Knows directories and mappings; a stub's contents do not matter here.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass

from usdt import find

__all__ = ["Removal", "clean"]

#: usdt.stubfile writes `.NAME.HEX` and gives it its name at once; after this many seconds its
#: writer is dead.
_ABANDONED = 60.0

_TEMPORARY = re.compile(rf"\.{find.STUB_NAME.pattern}\.[0-9a-f]{{12}}")


@dataclass(frozen=True, slots=True)
class Removal:
    """One file: `action` is 'removed', 'would remove' or 'kept'; `why` says the reason."""

    path: str
    action: str
    why: str


def clean(*, dry_run: bool = False) -> list[Removal]:
    """Remove what nobody maps; every file in the stub directories with what was done to it.

    N.B. Processes of other pid namespaces that share a directory are not seen. They keep what
    they have mapped; a provider that loads later there writes its stub again.
    """
    used, hidden = _mapped()
    done = []
    for directory in find.places():
        try:
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            done.append(Removal(directory, "kept", error.strerror or str(error)))
            continue
        try:
            for name in sorted(os.listdir(fd)):
                if find.STUB_NAME.fullmatch(name) or _TEMPORARY.fullmatch(name):
                    action, why = _one(fd, directory, name, used, hidden, dry_run)
                    done.append(Removal(f"{directory}/{name}", action, why))
        finally:
            os.close(fd)
    return done


def _one(
    fd: int, directory: str, name: str, used: set[str], hidden: int, dry_run: bool
) -> tuple[str, str]:
    try:
        info = os.stat(name, dir_fd=fd, follow_symlinks=False)
        temporary = name.startswith(".")
        if temporary and time.time() - info.st_mtime < _ABANDONED:
            return "kept", "is being written"
        # Not the device: on overlayfs and btrfs maps and stat name different ones.
        if str(info.st_ino) in used or f"{directory}/{name}" in used:
            return "kept", "in use"
        if os.geteuid() not in (0, info.st_uid):
            return "kept", f"belongs to uid {info.st_uid}: run again with sudo"
        # A process that root may not look at has rights that root has not: it is no service.
        if hidden and os.geteuid() != 0 and not temporary and not _private(directory):
            return "kept", f"{hidden} processes cannot be looked at: run again with sudo"
        if not dry_run:
            os.unlink(name, dir_fd=fd)
    except OSError as error:
        return "kept", error.strerror or str(error)
    return ("would remove" if dry_run else "removed"), "abandoned" if temporary else "not in use"


def _private(directory: str) -> bool:
    """Whether only processes of this user look for stubs there."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    own = [f"/tmp/usdt-{os.geteuid()}"] + ([f"{runtime}/usdt"] if runtime else [])
    return directory in own


def _mapped() -> tuple[set[str], int]:
    """Inode and path of every mapped stub, and how many processes might not be looked at."""
    used: set[str] = set()
    hidden = 0
    for pid in find.pids():
        try:
            used.update(*find.mapped_stubs(pid))
        except PermissionError:
            hidden += 1
        except OSError:
            continue  # it ended meanwhile
    return used, hidden
