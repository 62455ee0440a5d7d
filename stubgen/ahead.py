# SPDX-License-Identifier: MIT
"""Stubs made ahead: find the providers of a Python module, write their stubs into a directory.

The part of `usdt-stubgen build` that imports and writes. Must not know the `usdt` package: a
provider is a `stubgen.Provider` or anything whose `spec` is one.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from stubgen.arch import MACHINES
from stubgen.image import build, file_name
from stubgen.spec import Provider

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["BuildError", "Built", "builds", "find_providers", "stale", "write"]

_E_MACHINE = slice(18, 20)  # of the ELF header, little-endian for every machine in MACHINES

_NEXT = {
    errno.EACCES: "name a directory of yours with -o, or see who owns it: ls -ld {0}",
    errno.EPERM: "name a directory of yours with -o, or see who owns it: ls -ld {0}",
    errno.EROFS: "name a directory that is not read-only with -o: findmnt -T {0}",
    errno.ENOSPC: "make room, or name another directory with -o: df -h {0}",
    errno.EDQUOT: "make room, or name another directory with -o: quota",
    errno.ENOTDIR: "name a directory with -o: ls -ld {0}",
    errno.EEXIST: "name a directory with -o: ls -ld {0}",
}
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)


class BuildError(Exception):
    """Why nothing was built; one line with the next command. `denied`: for lack of privilege."""

    def __init__(self, message: str, *, denied: bool = False) -> None:
        super().__init__(message)
        self.denied = denied


@dataclass(frozen=True, slots=True)
class Built:
    """One stub: the file name it must have, and its bytes."""

    provider: Provider
    arch: str
    nop: str
    name: str
    data: bytes


def find_providers(target: str) -> list[Provider]:
    """`app.probes:shop` -> that provider; `app.probes` -> every provider in the module.

    Imports the module with the current directory on sys.path, as `python -m` does. Raises
    BuildError.
    """
    module_name, _, attribute = target.partition(":")
    if not all(part.isidentifier() for part in module_name.split(".")):
        raise BuildError(f"{module_name!r} is no module name: write app.probes, as in `import`")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            raise _import_failed(module_name, error) from None
        raise BuildError(
            f"no module {module_name!r} here: cd to the directory it is imported from, or set "
            "PYTHONPATH"
        ) from None
    except (Exception, SystemExit) as error:  # whatever the module's own code raises
        raise _import_failed(module_name, error) from None
    names = {name: spec for name, value in vars(module).items() if (spec := _spec(value))}
    if not attribute:
        if not any(spec.probes for spec in names.values()):
            raise BuildError(
                f"module {module_name!r} has no provider with probes at its top level: name the "
                f"module that has one"
            )
        return list(dict.fromkeys(spec for spec in names.values() if spec.probes))
    value: object = module
    for part in attribute.split("."):
        value = getattr(value, part, None)
    spec = _spec(value)
    if spec is None:
        known = f"it has {', '.join(sorted(names))}" if names else "it has none"
        raise BuildError(f"module {module_name!r} has no provider {attribute!r}: {known}")
    return [spec]


def _import_failed(module: str, error: BaseException) -> BuildError:
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return BuildError(
        f"importing {module!r} failed: {reason}: see where with: python3 -c 'import {module}'"
    )


def _spec(value: object) -> Provider | None:
    if isinstance(value, Provider):
        return value
    # Ask the type first: a module may hold objects that do things when an attribute is read.
    spec = getattr(value, "spec", None) if hasattr(type(value), "spec") else None
    return spec if isinstance(spec, Provider) else None


def builds(provider: Provider, arch: str, nop: str | None) -> list[Built]:
    """The stubs of a provider for one machine: of one nop kind, or of each. Raises SpecError."""
    kinds = [nop] if nop or arch not in MACHINES else list(MACHINES[arch].nops)
    out = []
    for kind in kinds:
        data = build(provider, arch=arch, nop=kind)
        out.append(Built(provider, arch, kind or "", file_name(provider, data), data))
    return out


def write(directory: str, built: Built) -> bool:
    """Put a stub in `directory`, whole or not at all; False if it was there. Raises BuildError."""
    path = os.path.join(directory, built.name)
    partial = os.path.join(directory, f".{built.name}.{os.getpid()}")
    try:
        os.makedirs(directory, exist_ok=True)
        try:
            with open(path, "rb") as file:
                if file.read(len(built.data) + 1) == built.data:
                    return False
        except FileNotFoundError:
            pass
        try:
            with open(partial, "xb") as file:
                file.write(built.data)
                os.fchmod(file.fileno(), 0o644)
            os.replace(partial, path)
        except BaseException:
            if os.path.lexists(partial):
                os.unlink(partial)
            raise
    except OSError as error:
        todo = _NEXT.get(error.errno or 0, "see what is there: ls -la {0}").format(directory)
        reason = f"cannot write {path}: {error.strerror}: {todo}"
        raise BuildError(reason, denied=error.errno in _DENIED) from None
    return True


def stale(directory: str, provider: str, current: Iterable[str], arch: str) -> list[str]:
    """Stubs of the same provider and machine in `directory` that are not in `current`."""
    shape = re.compile(re.escape(provider) + r"-[0-9a-f]{16}\.so")
    keep = set(current)
    machine = MACHINES[arch].e_machine.to_bytes(2, "little")
    out = []
    for name in sorted(os.listdir(directory)):
        if shape.fullmatch(name) and name not in keep:
            path = os.path.join(directory, name)
            with open(path, "rb") as file:
                if file.read(20)[_E_MACHINE] == machine:
                    out.append(path)
    return out
