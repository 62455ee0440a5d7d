# SPDX-License-Identifier: MIT
"""Raw stacks in the forms that tracers print, named; everything else untouched."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ustack.frame import AbsAddr, Frame, Reason
from ustack.resolve import resolve, shown


def name(pid: int | None, address: AbsAddr) -> Frame:
    """Every address is `f` of its process, at the offset that its last digit says."""
    kind = "kernel" if pid is None else "native"
    return Frame(kind, f"f{pid or ''}", offset=address & 15, module="/bin/app", address=address)


def named(text: str, pid: int | None = None) -> str:
    return "".join(resolve(text.splitlines(keepends=True), name, pid=pid))


BPFTRACE = """\
Attaching 2 probes...
@[4242, 
        7f3c12345671
        0x7f3c12345672
        ffffffff81000003
]: 17
@[4243, 
        7f3c12345671
]: 100000
"""  # noqa: W291
BPFTRACE_NAMED = """\
Attaching 2 probes...
@[4242, 
        f4242+1 (/bin/app)
        f4242+2 (/bin/app)
        f+3 (/bin/app)
]: 17
@[4243, 
        f4243+1 (/bin/app)
]: 100000
"""  # noqa: W291
PERF = """\
node  6490/6491 [001]  6292.905426:     250000 cpu-clock: 
\t    7fcfb5fc6924 [unknown] (/tmp/perf-6490.map)
\t         14cfd1c main+0xdc (/usr/bin/node)
\tffffffffc0123456 [unknown] ([unknown])

"""  # noqa: W291
PERF_NAMED = """\
node  6490/6491 [001]  6292.905426:     250000 cpu-clock: 
\t    7fcfb5fc6924 f6490+4 (/bin/app)
\t         14cfd1c main+0xdc (/usr/bin/node)
\tffffffffc0123456 f+6 (/bin/app)

"""  # noqa: W291
BPFTRACE_PERF = "@[4242, \n\t18cfd1c 0x18cfd1c ([unknown])\n]: 3\n"
BPFTRACE_PERF_NAMED = "@[4242, \n\t18cfd1c f4242+12 (/bin/app)\n]: 3\n"


@pytest.mark.parametrize(
    ("raw", "expected"),
    [(BPFTRACE, BPFTRACE_NAMED), (PERF, PERF_NAMED), (BPFTRACE_PERF, BPFTRACE_PERF_NAMED)],
    ids=["bpftrace", "perf script", "bpftrace perf mode"],
)
def test_a_tracers_form_is_named(raw: str, expected: str) -> None:
    """The process comes from the text, the kernel's half of the addresses from the kernel."""
    assert named(raw) == expected


def test_a_given_process_is_the_owner_of_all() -> None:
    """With a pid the text is not asked: neither other pids in it nor none at all matter."""
    assert named("@[1, \n  7f3c12345671\n", pid=7) == "@[1, \n  f7+1 (/bin/app)\n"


def test_without_an_owner_an_address_stays() -> None:
    """Whose it is nobody said; a kernel address is the same for everybody."""
    assert named("  7f3c12345671\n  ffffffff81000003") == "  7f3c12345671\n  f+3 (/bin/app)"


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=80).map(lambda t: f"{t} = x\n"))
def test_other_lines_pass_through(line: str) -> None:
    """Whatever a script prints, what is not a frame alone on its line stays as it is."""
    assert "".join(resolve([line], name, pid=1)) == line


@pytest.mark.parametrize(
    "line", ["12345\n", "]: 123456\n", "@x: 7f3c12345671\n", "\n", "deadbe:\n"]
)
def test_numbers_are_no_addresses(line: str) -> None:
    """Counts, map values and words that look like hex."""
    assert named(line, pid=1) == line


def test_what_is_shown() -> None:
    """A line where it is known, the module else; an unknown address with its reason."""
    at = AbsAddr(0x1234)
    jit = Frame("jit", "handler", file="app.js", line=7, offset=5, address=at)
    assert shown(jit) == "handler+5 (app.js:7)"
    gone = Frame("native", None, address=at, why=Reason.UNMAPPED)
    assert shown(gone) == "0x1234 (unmapped)"
