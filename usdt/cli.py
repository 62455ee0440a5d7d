# SPDX-License-Identifier: MIT
"""`usdt`: flags, and the wiring from them to `find`, `trace`, `doctor` and `clean`.

Owns exit codes and what is printed where. Must not know formats, tracers or processes.
"""

from __future__ import annotations

import argparse
import errno
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from usdt._command import CANNOT, FAILED, OK, CommandError, printable

if TYPE_CHECKING:
    from usdt.find import Process

__all__ = ["main", "parser"]

_TOOLS = "pip install 'usdt-toolkit[tools]'"

#: Version of every JSON document and line the command prints.
_VERSION = 1

#: What a write to stdout fails with where there is no room for it.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)

_EXAMPLES = """\
examples:
  usdt list                          which processes have probes, and who is listened to
  sudo usdt trace 'shop:*'           every event, as it happens, in processes to come too
  sudo usdt trace 'shop:*' --count
  usdt doctor                        what tracing misses on this machine

exit status: 0 ok, 1 failed, 2 usage, 3 this machine cannot (privilege, tool, kernel)
"""
_LIST = """\
examples:
  usdt list
  sudo usdt list                     other users' processes too
  usdt list -p 4242                  also ordinary USDT probes, such as those of its libc
  usdt list --json | jq '.processes[].pid'
"""
_TRACE = """\
examples:
  sudo usdt trace 'shop:*'
  sudo usdt trace 'shop:order_*' -p 4242 --json -d 10
  sudo usdt trace '*:*_done' --count
  sudo usdt trace shop:order_done --hist ns
  sudo usdt trace shop:order_start --hist customer    a string: counted by value

Attaches by path, so that processes which start later are traced too; with -p it prints one
process only, and ends with it. A string that went on is marked by … (bpftrace reads 199 bytes);
bytes are followed by their length. Ctrl-C ends; what was lost on the way is counted and shown.
"""
_DOCTOR = """\
examples:
  usdt doctor
  sudo usdt doctor                   as the tracer will be run
  usdt doctor --json | jq '.checks[] | select(.ok | not)'

One line per check: ok, no (with the command that mends it), or -- where tracing works without.
exit status: 0 tracing works, 3 something is missing
"""
_CLEAN = """\
examples:
  usdt clean --dry-run
  sudo usdt clean
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
        prog="usdt",
        description="Find, trace and look after the USDT probes of Python programs.",
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

    def command(
        name: str, help: str, epilog: str, run: Callable[[argparse.Namespace], int]
    ) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name,
            help=help,
            description=help[0].upper() + help[1:] + ".",
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        made.set_defaults(run=run)
        return made

    list_ = command("list", "print the processes that have probes", _LIST, _list)
    list_.add_argument("-p", "--pid", type=_pid, metavar="PID", help="this process only")
    list_.add_argument("--json", action="store_true", help="print one JSON document")

    trace = command("trace", "print events as they happen, through bpftrace", _TRACE, _trace)
    trace.add_argument(
        "pattern", metavar="PATTERN", help="PROVIDER:PROBE; *, ? and [abc] as in file names"
    )
    trace.add_argument("-p", "--pid", type=_pid, metavar="PID", help="this process only")
    trace.add_argument("--json", action="store_true", help="print one JSON object per line")
    how = trace.add_mutually_exclusive_group()
    how.add_argument("--count", action="store_true", help="count per probe and process")
    how.add_argument("--hist", metavar="ARG", help="a histogram of an argument, for each probe")
    trace.add_argument(
        "-d", "--duration", type=_seconds, metavar="S", help="end after so many seconds"
    )

    doctor = command("doctor", "say what tracing misses on this machine", _DOCTOR, _doctor)
    doctor.add_argument("--json", action="store_true", help="print one JSON document")

    clean = command("clean", "remove the stubs that no process has loaded", _CLEAN, _clean)
    clean.add_argument("-n", "--dry-run", action="store_true", help="say it and do nothing")
    return top


def _pid(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 1 << 22:
        raise argparse.ArgumentTypeError(f"{text!r} is no PID: list them with: usdt list")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds: try 10")
    return seconds


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status. Raises SystemExit for usage errors and help."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed: `>&-`
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
    options = parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        # A locale without "…" must not end a trace.
        getattr(stream, "reconfigure", lambda **_: None)(errors="backslashreplace")
    try:
        status: int = options.run(options)
        sys.stdout.flush()
    except CommandError as error:
        print(f"usdt {options.command}: {printable(str(error))}", file=sys.stderr)
        return error.code
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "elftools":
            raise
        print(f"usdt {options.command}: it needs pyelftools: {_TOOLS}", file=sys.stderr)
        return CANNOT
    except BrokenPipeError:  # the reader, `head` for one, has seen enough
        _discard_output()
        return OK
    except OSError as error:
        if error.errno not in _FULL:
            raise
        _discard_output()
        _say(options.command, f"cannot write to stdout: {error.strerror}: see what is full: df -h")
        return FAILED
    except KeyboardInterrupt:
        return FAILED
    return status


def _list(options: argparse.Namespace) -> int:
    from usdt import find

    if options.pid is None:
        survey = find.survey()
        processes, hidden = survey.processes, survey.hidden
    else:
        one = find.process(options.pid)
        processes, hidden = ((one,) if one.files else ()), 0
    if options.json:
        entries = [find.entry(process) for process in processes]
        print(json.dumps({"version": _VERSION, "processes": entries, "hidden": hidden}))
    else:
        for process in processes:
            _print_process(process)
    if hidden and os.geteuid() != 0:
        _say("list", f"{hidden} processes may not be looked at: run again with sudo")
    if not processes and not options.json:
        if options.pid is None:
            _say("list", "no process has loaded a stub: start one, or see: usdt doctor")
        else:
            _say("list", f"process {options.pid} has no probes: see who has some: usdt list")
    return OK


def _print_process(process: Process) -> None:
    from usdt import find

    print(printable(f"{process.pid} {process.comm}"))
    for file in process.files:
        # What to give to a tracer, and where that is another name, the program's own.
        name = f"{file.reach}  {file.path} (deleted)" if file.deleted else file.path
        print(printable(f"  {name}"))
        for index, _ in enumerate(file.elf.probes):
            heard = {True: "listening", False: "-", None: "?"}[file.listening(index)]
            print(printable(f"    {heard:<9}  {find.signature(file.elf, index)}"))


def _trace(options: argparse.Namespace) -> int:
    from usdt.trace import Request, trace

    trace(
        Request(
            options.pattern,
            pid=options.pid,
            json=options.json,
            count=options.count,
            hist=options.hist,
            duration=options.duration,
        )
    )
    return OK


def _doctor(options: argparse.Namespace) -> int:
    from usdt.doctor import checks

    found = checks()
    if options.json:
        rows = [
            {"name": c.name, "ok": c.ok, "found": c.found, "required": c.required,
             "fix": None if c.ok else c.fix}
            for c in found
        ]  # fmt: skip
        print(json.dumps({"version": _VERSION, "checks": rows}))
    else:
        for check in found:
            mark = "ok" if check.ok else "no" if check.required else "--"
            fix = f" -> {check.fix}" if check.fix and not check.ok else ""
            print(printable(f"{mark:<4} {check.name}: {check.found}{fix}"))
    return OK if all(check.ok for check in found if check.required) else CANNOT


def _clean(options: argparse.Namespace) -> int:
    from usdt.clean import clean

    done = clean(dry_run=options.dry_run)
    for removal in done:
        print(printable(f"{removal.action} {removal.path}: {removal.why}"))
    if not done:
        print("nothing to remove")
    return OK


def _discard_output() -> None:
    """What is left in the buffer must not fail again when the interpreter ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(command: str, message: str) -> None:
    print(f"usdt {command}: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
