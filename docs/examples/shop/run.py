# SPDX-License-Identifier: MIT
"""The demo: start the shop, watch it with stock tracers, compare what they saw with what was sent.

Owns the processes and the temporary stub directory, and leaves none behind; what is fired is
service.py's business. Exit codes: 0 the numbers agree, 1 they do not, 2 not installed.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import probes
from drive import MIX, drive, listening
from service import make_server

from usdt import testing

HERE = Path(__file__).resolve().parent
USDT = str(Path(sys.executable).with_name("usdt"))
FEW, MANY = len(MIX), 30 * len(MIX)

#: Seconds until a tracer must have attached, or what was fired must have been printed.
PATIENCE = 15.0

#: Seconds between the rise of a probe's semaphore and the tracer's program being at the site.
SETTLE = 0.3

# A line of `usdt trace`: time, process, probe; the probe's name is group 1.
EVENT = re.compile(r"\S+ \d+ shop:(\w+)")

# One row of a bpftrace histogram: "[256, 512)   7 |@@@   |"; the count is group 1.
BUCKET = re.compile(r"[\[(].*[\])]\s+(\d+) \|")


#: Signals that end the demo; those that came while `unbroken()` are remembered in `_held`.
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_held: list[int] | None = None


class CannotTraceError(Exception):
    """This machine has no way to trace; the message says what is missing."""


def end(number: int, frame: object) -> None:
    """Signal handler: leave through every `finally`, which later signals do not cut short."""
    if _held is not None:
        _held.append(number)
        return
    for each in ENDING:
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)


@contextmanager
def unbroken() -> Iterator[None]:
    """Hold signals back while something is made, until it is known to whoever removes it."""
    global _held
    held: list[int] = []
    _held = held
    yield
    _held = None
    if held:
        end(held[0], None)


class Tracer:
    """A running tracer; its output is collected in `lines` and printed as it comes."""

    def __init__(self, argv: Sequence[str], *, as_root: Sequence[str]) -> None:
        self.lines: list[str] = []
        self._as_root = as_root
        self._process = subprocess.Popen(
            [*as_root, *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="backslashreplace",
            # Ctrl-C is for us to hand on; and sudo ignores signals from its own process group.
            preexec_fn=os.setpgrp,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            # bpftrace says the latter where it may not raise a limit that it does not need.
            if line.strip() and "RLIMIT_MEMLOCK" not in line:
                self.lines.append(line.rstrip("\n"))
                print(f"  {line}", end="", flush=True)

    def ended(self) -> bool:
        return self._process.poll() is not None

    def stop(self) -> None:
        """End it as Ctrl-C does, and wait for its last line."""
        if not self.ended():
            if self._as_root:  # sudo is root's process: only root may signal it, it hands it on
                kill = f"kill -TERM {self._process.pid}"  # the shell's: procps may be missing
                subprocess.run([*self._as_root, "sh", "-c", kill], check=False)
            else:
                self._process.terminate()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()


def root_prefix() -> list[str]:
    """The words before a command that make it root's. Raises CannotTraceError."""
    if shutil.which("bpftrace") is None:
        raise CannotTraceError("bpftrace is not installed (apt-get install bpftrace)")
    if os.geteuid() == 0:
        return []
    if shutil.which("sudo") is None:
        raise CannotTraceError("tracers need root (run ./demo as root)")
    sudo = ["sudo", "-n"]
    if not subprocess.run([*sudo, "true"], capture_output=True).returncode:
        return sudo
    raise CannotTraceError("tracers need root, and sudo asks for a password (sudo -v, then again)")


@contextmanager
def running_service() -> Iterator[tuple[int, int, str]]:
    """The shop as a process of its own: (pid, port, path of its stub). Raises CannotTraceError."""
    with ExitStack() as stack:
        with unbroken():
            stubs = tempfile.mkdtemp(prefix="usdt-demo-")
            stack.callback(shutil.rmtree, stubs)
            os.chmod(stubs, 0o755)  # as the directories are where stubs live otherwise
            service = subprocess.Popen(
                [sys.executable, str(HERE / "service.py")],
                env=os.environ | {"USDT_STUB_DIR": stubs},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
            )
            stack.callback(service.wait)
            stack.callback(service.kill)
        assert service.stdout is not None
        start = json.loads(service.stdout.readline() or '{"why_not": "the service ended"}')
        if start["why_not"]:
            raise CannotTraceError(start["why_not"])
        yield start["pid"], start["port"], start["stubs"][0]


@contextmanager
def attached(
    argv: Sequence[str], *, as_root: Sequence[str], port: int, names: set[str]
) -> Iterator[Tracer]:
    """A tracer that listens to the probes `names`, for the block. Raises CannotTraceError."""
    print(f"\n$ {shlex.join([*as_root, *argv])}", flush=True)
    with ExitStack() as stack:
        with unbroken():
            tracer = Tracer(argv, as_root=as_root)
            stack.callback(tracer.stop)
        deadline = time.monotonic() + PATIENCE
        while not names.issubset(listening(port)):
            if tracer.ended() or time.monotonic() > deadline:
                tracer.stop()
                raise CannotTraceError((tracer.lines or [f"{argv[0]} does not attach"])[-1])
            time.sleep(0.02)
        time.sleep(SETTLE)
        yield tracer


def event_counts(lines: Sequence[str]) -> Counter[str]:
    """How often each probe is in the output of `usdt trace`."""
    return Counter(match[1] for match in map(EVENT.match, lines) if match)


def histogram_counts(lines: Sequence[str]) -> Counter[str]:
    """How many events each histogram `@us[ROUTE]:` of bpftrace's output holds."""
    counts: Counter[str] = Counter()
    route = None
    for line in lines:
        if line.startswith("@us["):
            route = line[len("@us[") : line.rindex("]")]
        elif route is not None and (row := BUCKET.match(line)):
            counts[route] += int(row[1])
    return counts


def agree(what: str, seen: Counter[str], sent: Counter[str]) -> bool:
    """Print both totals; whether they are equal, key by key."""
    same = seen == sent
    print(f"{what}: {seen.total()} seen, {sent.total()} fired{'' if same else ': THEY DIFFER'}")
    for key in sorted(seen.keys() | sent.keys()):
        if seen[key] != sent[key]:
            print(f"  {key}: {seen[key]} seen, {sent[key]} fired")
    return same


def fired(sent: Counter[str]) -> Counter[str]:
    """How often each probe fires for these requests."""
    requests = sent.total()
    return Counter(request_start=requests, request_done=requests, order_placed=sent["/orders"])


def watch() -> bool:
    """The demo with real tracers; whether they saw everything. Raises CannotTraceError."""
    as_root = root_prefix()
    with running_service() as (pid, port, stub):
        print(f"The shop serves on 127.0.0.1:{port} as process {pid}; its probes are in\n  {stub}")

        print(f"\nEvery event of {FEW} requests, with the names and types of the arguments:")
        argv = [USDT, "trace", "shop:*", "-p", str(pid), "--duration", str(round(PATIENCE))]
        every = {probe.spec.name for probe in probes.shop.probes}
        with attached(argv, as_root=as_root, port=port, names=every) as tracer:
            expected = fired(drive(port, requests=FEW))
            deadline = time.monotonic() + PATIENCE
            while event_counts(tracer.lines) != expected and time.monotonic() < deadline:
                time.sleep(0.02)
        same = agree("events", event_counts(tracer.lines), expected)

        print(f"\nLatency per route of {MANY} requests in microseconds, aggregated in the kernel:")
        script = f"usdt:{stub}:shop:request_done {{ @us[str(arg1)] = hist(arg3 / 1000); }}"
        argv = ["bpftrace", "-e", f"{script} interval:s:{round(PATIENCE)} {{ exit(); }}"]
        with attached(argv, as_root=as_root, port=port, names={"request_done"}) as tracer:
            sent = drive(port, requests=MANY)
        same = agree("requests", histogram_counts(tracer.lines), sent) and same

    service = shlex.join([os.path.relpath(sys.executable), os.path.relpath(HERE / "service.py")])
    trace = shlex.join([*as_root, os.path.relpath(USDT), "trace", "shop:*"])
    print("\nTo watch it yourself, run this, and the next line in another terminal:")
    print(f"  {service}\n  {trace}")
    return same


def capture() -> bool:
    """The demo without a tracer: the same events, heard in this process."""
    with testing.capture() as events, make_server() as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            sent = drive(server.server_port, requests=MANY)
        finally:
            server.shutdown()

    types = {probe.spec.name: probe.spec.args for probe in probes.shop.probes}
    shown = sum(fired(sent).values()) * FEW // MANY
    for event in events[:shown]:
        args = ", ".join(f"{arg}={event.args[arg.name]!r}" for arg in types[event.name])
        print(f"  {event.provider}:{event.name}({args})")
    print(f"  ... and {len(events) - shown} more\n")

    for route in sent:
        spent = [
            event.args["ns"]
            for event in events
            if event.args.get("route") == route and event.name == "request_done"
        ]
        print(
            f"  {route:10} {len(spent):4} requests, median {statistics.median(spent) / 1000:.0f} us"
        )
    return agree("events", Counter(event.name for event in events), fired(sent))


def main() -> int:
    for number in ENDING:
        signal.signal(number, end)
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    if not Path(USDT).exists():
        print(f"{USDT} is not installed: run this as `make demo`", file=sys.stderr)
        return 2
    try:
        same = watch()
    except CannotTraceError as error:
        print(f"\nNo tracer can be shown here: {error}")
        print("The same events, heard in the process by usdt.testing.capture():\n")
        same = capture()
        print("\n$ usdt doctor", flush=True)
        subprocess.run([USDT, "doctor"], check=False)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
