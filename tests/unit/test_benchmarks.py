# SPDX-License-Identifier: MIT
"""The table of `make bench`: when a bar is met, and that what is missing is never a number.

Knows nothing of measuring.
"""

from __future__ import annotations

import pytest

from benchmarks.rows import STEPS, rows
from benchmarks.table import Bar, Row, document, render


def test_bar_has_a_side_and_exceptions() -> None:
    """A limit is inclusive, from above or from below, and a minor may have its own."""
    assert Bar(0.5).met("3.10", 0.5)
    assert not Bar(0.5).met("3.10", 0.51)
    assert Bar(8, least=True).met("3.10", 8)
    assert not Bar(8, least=True).met("3.10", 7.9)
    assert Bar(0.8, special={"3.12": 0.9}).met("3.12", 0.85)
    assert not Bar(0.8, special={"3.12": 0.9}).met("3.13", 0.85)


def test_median_decides() -> None:
    """One slow sample does not miss a bar, two of three do, and the minor is named."""
    row = Row("call", "call", bar=Bar(1))
    row.fill("3.11", {"call": [0.9, 0.9, 7.0]})
    assert (row.missed(), row.verdict()) == ([], "ok")
    row.fill("3.12", {"call": [0.9, 7.0, 7.0]})
    assert (row.missed(), row.verdict()) == (["3.12"], "MISSED on 3.12")


def test_unavailable_is_a_reason() -> None:
    """A cell that could not be measured prints its reason, is not ok, and has no median."""
    row = Row("traced", "traced call", "ns", Bar(1.25))
    row.cells["3.11"] = "no bpftrace (apt-get install bpftrace)"
    text = render([row], ["3.11"])
    assert "unavailable: no bpftrace (apt-get install bpftrace)" in text
    assert "ok" not in text
    (found,) = document([row], {})["rows"]
    assert found["cells"] == {"3.11": {"why_not": "no bpftrace (apt-get install bpftrace)"}}


def test_a_row_may_not_be_forgotten() -> None:
    """Only a row that says why it may be absent can be filled from nothing."""
    optional = Row("other", "other nop kind", absent="one nop kind")
    optional.fill("3.11", {})
    assert optional.cells == {"3.11": "one nop kind"}
    with pytest.raises(KeyError):
        Row("call", "call").fill("3.11", {})


def test_every_step_has_rows_of_its_own() -> None:
    """The table and the measurements name the same parts, and no key occurs twice."""
    table = rows()
    assert list(table) == list(STEPS)
    keys = [row.key for step in table.values() for row in step]
    assert len(keys) == len(set(keys))
