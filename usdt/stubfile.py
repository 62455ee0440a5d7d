# SPDX-License-Identifier: MIT
"""Where stubs live on disk: find or place the one file that every process of a provider maps.

Decides which directories and files may be trusted to be dlopen'd (docs/security.md). Knows
bytes and paths, not probes.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from itertools import count

import stubgen
from stubgen.arch import MACHINES
from stubgen.image import file_name
from usdt import _nop
from usdt._probe import Stub

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_memfds = count(2)

__all__ = ["LoadError", "directories", "open_directory", "open_stub"]


class LoadError(RuntimeError):
    """A provider's stub could not be mapped; the message says why and what to run next."""


def directories() -> list[str]:
    """The directories that all processes of a machine or user share, best first.

    The system's comes before a user's own: a stub that root has placed there serves everybody,
    so that one attach sees all of them.
    """
    found = [os.environ.get("USDT_STUB_DIR"), "/run/usdt"]
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime:
        found.append(f"{runtime}/usdt")
    found.append(f"/tmp/usdt-{os.geteuid()}")
    try:
        return [os.path.abspath(path) for path in found if path]
    except FileNotFoundError:  # one is relative to a working directory that is gone
        return [path for path in found if path and os.path.isabs(path)]


def open_directory(path: str, *, create: bool) -> int:
    """A file descriptor of a directory whose files may be mapped as code.

    It must be root's or ours, not a symlink, and not writable by anybody else. Raises OSError.
    """
    made = False
    if create:
        try:
            os.mkdir(path, 0o755)
            made = True
        except FileExistsError:
            pass
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        info = os.fstat(fd)
        if info.st_uid not in (0, os.geteuid()):
            raise PermissionError(f"belongs to uid {info.st_uid}")
        if info.st_mode & 0o022:
            raise PermissionError("is writable by others (chmod go-w it)")
        if os.fstatvfs(fd).f_flag & os.ST_NOEXEC:
            raise PermissionError("is on a file system mounted noexec")
        if made:
            os.fchmod(fd, 0o755)  # readable by all, whatever the umask
    except BaseException:
        os.close(fd)
        raise
    return fd


def open_stub(
    provider: stubgen.Provider, *, built: list[str], nop: str | None = None
) -> tuple[Stub, str]:
    """Map the stub of `provider`: the mapping, and the path at which tracers find the file.

    built: directories that may hold stubs made ahead (`usdt-stubgen build`); they are as trusted
    as the program's own code.  nop: a nop kind, "fastest", or None for the safe one.  Raises
    LoadError.
    """
    machine = os.uname().machine
    if sys.platform != "linux" or machine not in MACHINES or sys.maxsize < 2**32:
        raise LoadError(f"no stubs for {sys.platform} on {machine} ({sys.maxsize:#x})")
    kind = _nop.fastest()[0] if nop == "fastest" else nop or MACHINES[machine].default_nop
    if kind not in MACHINES[machine].nops:
        raise LoadError(f"no nop kind {kind!r} on {machine}: leave `nop` out of the Provider")
    image = stubgen.build(provider, arch=machine, nop=kind)
    name = file_name(provider, image)
    refused = []
    for path in _built_paths(built, name, image):
        try:
            return Stub(path), path
        except OSError as error:
            refused.append(str(error))

    write = os.environ.get("USDT_NO_RUNTIME_STUBS", "") in ("", "0")
    for directory in directories():
        # Twice: `usdt clean` may remove a file between our look at it and dlopen's.
        for _ in range(2):
            path = f"{directory}/{name}"
            placed = False
            try:
                _place(directory, name, image, write=write)
                placed = True
                return Stub(path), path
            except OSError as error:
                reason = error.strerror or str(error)
            if not placed or os.path.exists(path):
                break
        refused.append(reason if directory in reason else f"{directory}: {reason}")
    if write:
        try:
            return _open_memfd(name, image)
        except OSError as error:
            refused.append(f"memfd: {error.strerror or error}")
    else:
        refused.append("USDT_NO_RUNTIME_STUBS is set: ship stubs made by `usdt-stubgen build`")
    raise LoadError(
        f"provider {provider.name!r} has no place for its stub ({'; '.join(refused)}): "
        "run `usdt doctor`"
    )


def _built_paths(directories: list[str], name: str, image: bytes) -> Iterator[str]:
    """Files made ahead that are exactly this stub."""
    for directory in directories:
        try:
            path = f"{os.path.abspath(directory)}/{name}"
            with open(path, "rb") as file:
                if file.read(len(image) + 1) == image:
                    yield path
        except (OSError, ValueError):  # no such directory, or no name of one
            continue


def _place(directory: str, name: str, image: bytes, *, write: bool) -> None:
    """See to it that the file is there with exactly these bytes. Raises OSError."""
    fd = open_directory(directory, create=write)
    try:
        if _holds(fd, name, image):
            return
        if not write:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        _write(fd, name, image)
    finally:
        os.close(fd)


def _holds(directory: int, name: str, image: bytes) -> bool:
    """Whether the file has these bytes, and nobody but root and us can change them."""
    try:
        fd = os.open(
            name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory
        )
    except OSError:
        return False
    try:
        info = os.fstat(fd)
        return (
            stat.S_ISREG(info.st_mode)
            and info.st_uid in (0, os.geteuid())
            and not info.st_mode & 0o022
            and info.st_size == len(image)
            and os.read(fd, len(image)) == image
        )
    finally:
        os.close(fd)


def _write(directory: int, name: str, image: bytes) -> None:
    """Write the file whole, then give it its name; processes that race here share one inode."""
    temporary = f".{name}.{os.urandom(6).hex()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    fd = os.open(temporary, flags, 0o600, dir_fd=directory)
    try:
        try:
            rest = memoryview(image)
            while rest:
                rest = rest[os.write(fd, rest) :]
            os.fchmod(fd, 0o444)  # readable by all, whatever the umask
        finally:
            os.close(fd)
        try:
            # Unlike rename, link keeps a file that another process has just put there.
            os.link(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
        except OSError:
            if not _holds(directory, name, image):
                os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
                return
    except BaseException:
        os.unlink(temporary, dir_fd=directory)
        raise
    os.unlink(temporary, dir_fd=directory)


def _open_memfd(name: str, image: bytes) -> tuple[Stub, str]:
    """A stub in memory: private to this process and its children. Raises OSError."""
    fd = os.memfd_create(f"usdt:{name}", os.MFD_CLOEXEC)
    try:
        rest = memoryview(image)
        while rest:
            rest = rest[os.write(fd, rest) :]
    except BaseException:
        os.close(fd)
        raise
    # ld.so takes a path it has seen for the file it has seen, also when the descriptor was closed
    # behind it and its number given to another file: no two loads spell it alike.
    unseen = "/" * next(_memfds)
    return Stub(f"/proc/self/fd{unseen}{fd}", fd), f"/proc/{os.getpid()}/fd/{fd}"
