# SPDX-License-Identifier: MIT
"""`ustack`: flags, and the wiring from them to notes, spaces and text.

Owns exit codes and what is printed where. Must not know formats, maps or symbols.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from typing import Any

from ustack.bpftrace import TracerError
from ustack.frame import AbsAddr, Frame
from ustack.jit import LiveNotes
from ustack.kernel import load_kernel
from ustack.notes.spelling import split
from ustack.notes.table import Table
from ustack.notes.tail import Tail, read_file
from ustack.record import Request, record
from ustack.render import ENDINGS, EndingError, writer_for
from ustack.render.summary import lines, summarize
from ustack.resolve import resolve
from ustack.spaces import Spaces

__all__ = ["main", "parser"]

OK, FAILED, USAGE, CANNOT = 0, 1, 2, 3

_TOOLS = "pip install 'usdt-toolkit[tools]'"

#: Version of every JSON document the command prints.
_VERSION = 1

_EXAMPLES = """\
examples:
  ustack notes 4242                  what a JIT or interpreter says about its addresses
  sudo bpftrace -e 'profile:hz:99 /pid == 4242/ { @[ustack(raw)] = count(); }' > raw.txt
  ustack resolve -p 4242 < raw.txt   the same stacks, named

exit status: 0 ok, 1 failed, 2 usage, 3 this machine cannot (privilege, tool, kernel)
"""
_NOTES = """\
examples:
  ustack notes 4242
  ustack notes /tmp/perf-4242.map
  ustack notes ./jit-4242.dump --json | jq '.notes | length'

Prints what is true now: where two notes overlap, the later one. docs/notes.md has the formats.
"""
_RECORD = """\
examples:
  sudo ustack record -p 4242 -d 10 -o app.html            a flame graph, to open in a browser
  sudo ustack record -a -d 60 -o machine.speedscope.json
  sudo ustack record -p 4242 --event tracepoint:syscalls:sys_enter_write -d 5 -o writes.folded
  sudo ustack record -p 4242 --event gil -d 10 -o gil.html    who waits for the GIL, and for whom

The ending of the file says the format: docs/profile-format.md. Frames of CPython 3.10 to 3.15 are
walked in the kernel by stock bpftrace; nothing is stopped or injected. Ctrl-C ends.
"""
_RESOLVE = """\
examples:
  ustack resolve -p 4242 < raw.txt
  sudo perf script | sudo ustack resolve
  sudo BPFTRACE_NO_USER_SYMBOLS=1 bpftrace -e 'profile:hz:99 { @[pid, ustack(perf)] = count(); }' \\
      | sudo ustack resolve

Replaces addresses that stand alone on a line, or that perf and bcc call [unknown]; all else
passes through. Without -p the process is the one that the text names: perf script's header
lines, or a pid as the first key of a bpftrace map. Processes must still run.
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


def _pid(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no process id: see ps -e")
    return value


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return value


def parser() -> argparse.ArgumentParser:
    """The command's parser; man page and completion come from it too."""
    top = argparse.ArgumentParser(
        prog="ustack",
        description="Name the frames of stacks: kernel, C, JIT and interpreter.",
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

    notes = command("notes", "print what a JIT or interpreter says about addresses", _NOTES)
    notes.add_argument("target", metavar="PID|FILE", help="a process, a perf map or a jitdump")
    notes.add_argument("--json", action="store_true", help="print one JSON document")
    notes.set_defaults(run=_notes)

    rec = command("record", "sample processes and write a flame graph or profile", _RECORD)
    who = rec.add_mutually_exclusive_group(required=True)
    who.add_argument("-p", "--pid", type=_pid, metavar="PID", help="one process, all its threads")
    who.add_argument("-a", "--all", action="store_true", help="every process there is")
    rec.add_argument(
        "--event",
        default="profile:hz:99",
        metavar="PROBE",
        help="any bpftrace probe, or gil (%(default)s)",
    )
    rec.add_argument(
        "-d", "--duration", type=_seconds, metavar="S", help="end after so many seconds"
    )
    rec.add_argument("-o", "--output", required=True, metavar="FILE", help=" ".join(ENDINGS))
    rec.set_defaults(run=_record)

    names = command("resolve", "put names in place of the addresses in a tracer's text", _RESOLVE)
    names.add_argument("-p", "--pid", type=_pid, metavar="PID", help="whose stacks they are")
    names.set_defaults(run=_resolve)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    try:
        status: int = options.run(options)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # The reader has what it wanted; what is still buffered has nobody to go to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        return _fail(f"{error.filename or 'output'}: {error.strerror}: see it with: ls -l")


def _fail(message: str, status: int = FAILED) -> int:
    print(f"ustack: {message}", file=sys.stderr)
    return status


def _notes(options: argparse.Namespace) -> int:
    target: str = options.target
    if target.isdigit() and not os.path.exists(target):
        if not os.path.exists(f"/proc/{target}"):
            return _fail(f"process {target} is gone: see what runs with: ps -e")
        tail = Tail(int(target))
        tail.poll()
        table, problems = tail.table, tail.reasons()
        tail.close()
    else:
        table, problems = read_file(target)
    if options.json:
        print(json.dumps(_document(table, problems)))
    else:
        for start, end, note in table.current():
            said = split(note.name)
            line = "" if said.line is None else f":{said.line}"
            where = f"  {said.file}{line}" if said.file else ""
            print(_printable(f"{start:#014x} {end - start:6d}  {said.function}{where}"))
    for problem in problems:
        print(f"ustack: {_printable(problem)}", file=sys.stderr)
    return OK if len(table) else FAILED


def _document(table: Table, problems: list[str]) -> dict[str, Any]:
    rows = []
    for start, end, note in table.current():
        said = split(note.name)
        rows.append(
            {
                "start": start, "size": end - start, "name": note.name, "function": said.function,
                "file": said.file, "line": said.line, "tier": said.tier, "source": note.source,
            }
        )  # fmt: skip
    return {"version": _VERSION, "notes": rows, "problems": problems}


def _record(options: argparse.Namespace) -> int:
    try:
        write = writer_for(options.output)
    except EndingError as error:
        return _fail(str(error), USAGE)
    if options.pid is not None and not os.path.exists(f"/proc/{options.pid}"):
        return _fail(f"process {options.pid} is gone: see what runs with: ps -e")
    asked = False

    def ask(number: int, frame: object) -> None:
        nonlocal asked
        asked = True

    def progress(samples: int, seconds: float) -> bool:
        if sys.stderr.isatty():
            print(f"\r{seconds:6.1f} s  {samples} samples ", end="", file=sys.stderr, flush=True)
        return asked

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, ask)
    request = Request(event=options.event, pid=options.pid, duration=options.duration)
    # Opened before anything is recorded: a directory that is not there must not cost the samples.
    partial = f"{options.output}.{os.getpid()}"
    with open(partial, "xb") as file:
        try:
            recording = record(request, progress)
            file.write(write(recording.profile))
            file.flush()
            os.replace(partial, options.output)
        except TracerError as error:
            return _fail(_printable(str(error)), CANNOT)
        finally:
            if os.path.exists(partial):
                os.unlink(partial)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    width = shutil.get_terminal_size().columns
    for line in lines(recording.profile, summarize(recording.profile), width=width):
        print(line)
    for line in recording.facts:
        print(line)
    for problem in recording.problems:
        print(f"ustack: {_printable(problem)}", file=sys.stderr)
    return OK


def _resolve(options: argparse.Namespace) -> int:
    pid: int | None = options.pid
    if pid is not None and not os.path.exists(f"/proc/{pid}"):
        return _fail(f"process {pid} is gone, and its maps with it: see what runs with: ps -e")
    kernel = load_kernel()
    spaces = Spaces(notes=LiveNotes())
    unknown: dict[str, str] = {}

    def name(owner: int | None, address: AbsAddr) -> Frame:
        frame = kernel.resolve(address) if owner is None else spaces.resolve(owner, address)
        if frame.why is not None:
            unknown[frame.why.word] = frame.why.hint
        return frame

    sys.stdin.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    sys.stdout.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    for line in resolve(sys.stdin, name, pid=pid):
        sys.stdout.write(line)
    for word, hint in unknown.items():
        print(f"ustack: {word}: {hint}", file=sys.stderr)
    return OK


def _printable(text: str) -> str:
    """Names are the traced program's: nothing in them reaches the terminal as a command."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
