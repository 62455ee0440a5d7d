# SPDX-License-Identifier: MIT
"""What the terminal shows after a recording: numbers that are right, lines that fit.

Values in, lines out; no terminal takes part.
"""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from profiles import SHOP, hostile, profiles

from ustack.frame import Reason
from ustack.render import Profile, summary
from ustack.render.text import amount, cells, escaped, fit, share

slow = settings(deadline=None, max_examples=60)

GOLDEN = """\
87 samples, 10.0 s, 2 processes, 3 threads, profile:hz:99
    self    total          function
  42.5 %   62.1 %  Python  handler  app.py
  19.5 %   19.5 %  kernel  vfs_read  [kernel]
  14.9 %   14.9 %  unknown (no symbols: libvendor.so)  libvendor.so
  14.9 %   14.9 %  JIT     LazyCompile:*render  page.js
   8.0 %    8.0 %  Ruby    Mailer#deliver  mailer.rb
   0.0 %   97.7 %  C       _start  python3.11
   0.0 %   62.1 %  Python  <module>  app.py
   0.0 %   19.5 %  C       read  libc.so.6

frames named: 95.5 %; unknown: no symbols 4.5 %
  no symbols: install the file's debug symbols (apt-get install NAME-dbgsym; dnf
   debuginfo-install NAME), or see what it has: readelf -sW FILE
stacks cut: 2.3 % of the samples
lost: 3 samples, not in any number here

   share        pid        tid  thread
  88.5 %       4242       4242  shop
   8.0 %       5151       5151  mailer
   3.4 %       4242       4243  shop
"""


def test_summary_golden() -> None:
    """The whole text, which must say `42.5 %   62.1 %  Python  handler` of a recursive function."""
    assert "42.5 %   62.1 %  Python  handler" in GOLDEN
    assert "\n".join(summary.lines(SHOP, summary.summarize(SHOP), width=80)) + "\n" == GOLDEN


def test_colours_change_no_text() -> None:
    """Escape sequences only where they were asked for."""
    made = summary.summarize(SHOP)
    plain = "\n".join(summary.lines(SHOP, made))
    coloured = "\n".join(summary.lines(SHOP, made, colour=True))
    assert "\x1b" not in plain
    assert "\x1b[1m" in coloured
    assert re.sub(r"\x1b\[[0-9]m", "", coloured) == plain


@slow
@given(profiles(), st.integers(0, 200))
def test_lines_fit_and_are_safe(profile: Profile, width: int) -> None:
    """No line is too wide or moves the cursor, whatever functions are called."""
    for line in summary.lines(profile, summary.summarize(profile), width=width):
        assert cells(line) <= max(width, 40)
        assert line.isprintable()


@slow
@given(profiles())
def test_summary_adds_up(profile: Profile) -> None:
    """Threads and processes have everything; own values too, but for empty and cut stacks."""
    made = summary.summarize(profile)
    assert made.total == profile.total
    assert sum(value for *_, value in made.threads) == profile.total
    assert sum(value for *_, value in made.processes) == profile.total
    ends = sum(sample.value for sample in profile.samples if sample.stack)
    assert sum(row.own for row in made.rows) == ends
    assert all(row.own <= row.total or row.function.kind == "cut" for row in made.rows)
    frames = sum(
        sample.value * sum(frame.why is not Reason.CUT for frame in sample.stack)
        for sample in profile.samples
    )
    assert made.named + sum(count for _, count in made.reasons) == made.frames == frames


def test_document_has_the_same_values() -> None:
    """What a machine reads is what people read."""
    made = summary.summarize(SHOP)
    document = json.loads(json.dumps(summary.document(SHOP, made, top=2)))
    assert document["top"][0] == {
        "kind": "python", "name": "handler", "module": "", "file": "/srv/shop/app.py",
        "own": 37, "total": 54,
    }  # fmt: skip
    assert len(document["top"]) == 2
    assert document["frames"] == {"total": 289, "named": 276, "unknown": {"no symbols": 13}}
    assert (document["cut"], document["lost"]) == (2, 3)


def test_nothing_recorded() -> None:
    """Said in words."""
    lines = list(summary.lines(Profile(()), summary.summarize(Profile(()))))
    assert lines == [
        "0 samples, 0 processes, 0 threads", "no samples: nothing ran, or nothing matched the event"
    ]  # fmt: skip


def test_many_rows_and_threads_are_counted() -> None:
    """What is not shown is said to be there."""
    profile = hostile()
    lines = list(summary.lines(profile, summary.summarize(profile), top=5))
    assert any(re.search(r"and \d+ functions more", line) for line in lines)
    assert any(re.search(r"\d+ more threads", line) for line in lines)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (1, "samples", "1 sample"), (1234, "samples", "1,234 samples"), (0, "ns", "0 ns"),
        (999, "ns", "999 ns"), (1500, "ns", "1.50 us"), (2_500_000, "ns", "2.50 ms"),
        (61_000_000_000, "ns", "61.00 s"),
    ],
)  # fmt: skip
def test_amounts_have_units(value: int, unit: str, text: str) -> None:
    """Samples are counted, time is read."""
    assert amount(value, unit) == text


def test_text_is_cut_to_cells() -> None:
    """Wide characters take two columns, combining ones none, and a share of nothing is 0."""
    assert fit("handler", 7) == "handler"
    assert fit("handler", 6) == "handl\u2026"
    assert fit("handler", 1) == ""
    assert fit("\u6f22\u5b57\u6f22", 5) == "\u6f22\u5b57\u2026"
    assert cells("e\u0301") == 1
    assert escaped("a\x1b\u2028\udcff\U000e0001") == "a\\x1b\\u2028\\udcff\\U000e0001"
    assert share(1, 0) == "0.0 %"
