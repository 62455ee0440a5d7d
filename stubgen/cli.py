# SPDX-License-Identifier: MIT
"""`usdt-stubgen`: flags, and the wiring from them to `ahead`, `read`, `check` and `show`.

Owns exit codes and what is printed where. Must not know formats.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import platform
import sys
from typing import TYPE_CHECKING, Any

from stubgen import ahead
from stubgen.arch import MACHINES
from stubgen.spec import SpecError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["main", "parser"]

OK, FAILED, USAGE, CANNOT = 0, 1, 2, 3

_TOOLS = "pip install 'usdt-toolkit[tools]'"

#: What a write to stdout fails with where there is no room for it.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)

_EXAMPLES = """\
examples:
  usdt-stubgen build app.probes:shop -o app/stubs/   make the stubs to ship with a package
  usdt-stubgen show app/stubs/shop-1d5c0a3e9b7f2468.so
  usdt-stubgen show --pid 4242                       who listens, and what to paste
  usdt-stubgen check /usr/lib/x86_64-linux-gnu/libstdc++.so.6

exit status: 0 ok, 1 failed, 2 usage, 3 this machine cannot (privilege, tool, kernel)
"""
_BUILD = """\
examples:
  usdt-stubgen build app.probes:shop -o app/stubs/
  usdt-stubgen build app.probes -o app/stubs/            every provider of the module
  usdt-stubgen build app.probes -o app/stubs/ --arch aarch64

A program finds stubs in `stubs/` beside the module that makes the Provider, in
Provider(stubs=DIR) and in $USDT_STUB_PATH. Stubs of older declarations are left where they are
and named on stderr.
"""
_SHOW = """\
examples:
  usdt-stubgen show /run/usdt/shop-1d5c0a3e9b7f2468.so
  usdt-stubgen show /usr/bin/python3.11                  any ELF file with USDT probes
  usdt-stubgen show --pid 4242
  usdt-stubgen show --pid 4242 --json | jq '.files[].probes[].name'
"""
_CHECK = """\
examples:
  usdt-stubgen check app/stubs/shop-1d5c0a3e9b7f2468.so
  usdt-stubgen check /usr/bin/python3.11 --json

exit status: 0 no tracer refuses a probe, 1 one does (or there is none), 3 a tool is missing
"""


class _PrintCompletion(argparse.Action):
    """Print a shell's completion script and leave."""

    def __call__(self, parser: argparse.ArgumentParser, _space: object, values: Any, _option: Any
                 = None) -> None:  # fmt: skip
        try:
            import shtab
        except ImportError:
            parser.exit(CANNOT, f"{parser.prog}: completion needs shtab: {_TOOLS}\n")
        print(shtab.complete(parser, values))
        parser.exit(OK)


def parser() -> argparse.ArgumentParser:
    """The command's parser; man page and completion come from it too."""
    top = argparse.ArgumentParser(
        prog="usdt-stubgen",
        description="Make, show and check ELF stubs that carry USDT probes; no compiler needed.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument(
        "--print-completion",
        action=_PrintCompletion,
        choices=("bash", "zsh", "tcsh"),
        help="print a completion script for a shell",
    )
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, help: str, epilog: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=help,
            description=help[0].upper() + help[1:] + ".",
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    build = command("build", "write the stubs of a Python module's providers", _BUILD)
    build.add_argument("target", metavar="MODULE[:PROVIDER]", help="what to import, as Python does")
    build.add_argument("-o", "--output", metavar="DIR", required=True, help="where to write")
    build.add_argument(
        "--arch", choices=tuple(MACHINES), help="machine to build for (default: this one)"
    )
    kinds = sorted({kind for machine in MACHINES.values() for kind in machine.nops})
    build.add_argument(
        "--nop",
        choices=kinds,
        help="nop kind at the sites (default: a stub for each; a program takes the one that its "
        "Provider asks for)",
    )
    build.set_defaults(run=_build)

    show = command("show", "print the probes of an ELF file or of a process", _SHOW)
    what = show.add_mutually_exclusive_group(required=True)
    what.add_argument("file", metavar="FILE", nargs="?", help="an ELF file, a stub or any other")
    what.add_argument("--pid", type=_pid, metavar="PID", help="every file the process has mapped")
    show.add_argument("--json", action="store_true", help="print one JSON document")
    show.set_defaults(run=_show)

    check = command("check", "say what each known tracer refuses in an ELF file", _CHECK)
    check.add_argument("file", metavar="FILE", help="an ELF file, a stub or any other")
    check.add_argument("--json", action="store_true", help="print one JSON document")
    check.set_defaults(run=_check)
    return top


def _pid(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 1 << 22:
        raise argparse.ArgumentTypeError(f"{text!r} is no PID: list them with: ps -e")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status. Raises SystemExit for usage errors and help."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed: `>&-`
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
    options = parser().parse_args(argv)
    try:
        status: int = options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, `head` for one, has seen enough
        _discard_output()
        return FAILED
    except OSError as error:
        if error.errno not in _FULL:
            raise
        _discard_output()
        return _fail(f"cannot write to stdout: {error.strerror}: see what is full: df -h")
    except KeyboardInterrupt:
        return FAILED
    return status


def _discard_output() -> None:
    """What is left in the buffer must not fail again when the interpreter ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: object, status: int = FAILED) -> int:
    print(f"usdt-stubgen: {_printable(str(message))}", file=sys.stderr)
    return status


def _printable(text: str) -> str:
    """Without what a path may have and a terminal or an encoding should not get."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        print(_printable(line))


def _build(options: argparse.Namespace) -> int:
    arch = options.arch or platform.machine()
    try:
        providers = ahead.find_providers(options.target)
        wanted = [built for p in providers for built in ahead.builds(p, arch, options.nop)]
        for built in wanted:
            fresh = ahead.write(options.output, built)
            path = os.path.join(options.output, built.name)
            state = "written" if fresh else "unchanged"
            count = len(built.provider.probes)
            probes = f"{count} probe{'s' * (count != 1)}"
            print(f"{path}  {arch} {built.nop}, {probes}, {state}")
        for name in dict.fromkeys(provider.name for provider in providers):
            current = [
                built.name
                for provider in providers
                if provider.name == name
                for built in ahead.builds(provider, arch, None)
            ]
            old = ahead.stale(options.output, name, current, arch)
            if old:
                print(
                    f"usdt-stubgen: no longer what {options.target} declares: rm {' '.join(old)}",
                    file=sys.stderr,
                )
    except ahead.BuildError as error:
        return _fail(error, CANNOT if error.denied else FAILED)
    except SpecError as error:
        return _fail(error)
    return OK


def _show(options: argparse.Namespace) -> int:
    try:
        from stubgen import read, show
    except ImportError:
        return _fail(f"show needs pyelftools: {_TOOLS}", CANNOT)
    try:
        if options.pid is None:
            elf = read.read_path(options.file)
            subject = options.file
            files = [show.file(elf, os.path.abspath(options.file))] if elf.probes else []
        else:
            subject = f"process {options.pid}"
            files = [
                show.file(mapped.elf, mapped.reach, deleted=mapped.deleted, values=mapped.values)
                for mapped in read.read_pid(options.pid)
                if mapped.elf.probes
            ]
    except read.ReadError as error:
        return _fail(error, CANNOT if isinstance(error, read.DeniedError) else FAILED)
    if options.json:
        print(json.dumps({"version": show.VERSION, "pid": options.pid, "files": files}))
    else:
        for entry in files:
            _print(show.file_lines(entry))
    if not files:
        hint = (
            f"see its functions: bpftrace -l 'uprobe:{options.file}:*'"
            if options.pid is None
            else "see what processes have some: usdt list"
        )
        return _fail(f"{subject} has no USDT probes: {hint}")
    return OK


def _check(options: argparse.Namespace) -> int:
    try:
        from stubgen import check, read, show
    except ImportError:
        return _fail(f"check needs pyelftools: {_TOOLS}", CANNOT)
    try:
        elf = read.read_path(options.file, functions=True)
    except read.ReadError as error:
        return _fail(error, CANNOT if isinstance(error, read.DeniedError) else FAILED)
    if not elf.probes:
        return _fail(
            f"{options.file} has no USDT probes that a tracer could refuse: see its sections: "
            f"readelf -SW {options.file}"
        )
    findings = check.check(elf)
    document = show.checked(elf, findings)
    if options.json:
        print(json.dumps(document))
    else:
        _print(show.checked_lines(document))
    return FAILED if any(finding.severity == "refuses" for finding in findings) else OK


if __name__ == "__main__":
    sys.exit(main())
