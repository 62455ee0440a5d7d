# SPDX-License-Identifier: MIT
"""The interval table against a slow model that replays the entries byte by byte.

Knows only the table's public face, so that its indexes may change.
"""

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from ustack.notes import End, Note, Table

MEMORY = 48  # small, so that notes overlap


def note(start, size, name="f", *, since=None, when=0):
    return Note(start, size, name, when if since is None else since, when, "test")


def covers(entry, address):
    return entry.start <= address < entry.start + entry.size


def slow(entries, address, time):
    """What the table must say, by its definition."""
    ordered = sorted(entries, key=lambda entry: entry.when)
    owner = None
    for entry in ordered:
        if time is not None and entry.when > time:
            continue
        if isinstance(entry, Note):
            owner = entry if covers(entry, address) else owner
        elif entry.note is None or entry.note is owner:
            owner = None
    if owner is None and time is not None:
        for entry in ordered:
            if isinstance(entry, Note) and covers(entry, address):
                owner = entry if entry.since <= time < entry.when else owner
    return owner and (owner, address - owner.start)


@st.composite
def histories(draw):
    """Batches of entries; their times mostly go up, as in real files."""
    batches, notes, time = [], [], 0
    for _ in range(draw(st.integers(1, 6))):
        batch = []
        for _ in range(draw(st.integers(0, 8))):
            time = max(0, time + draw(st.sampled_from([0, 0, 1, 2, -3])))
            kind = draw(st.integers(0, 9))
            if kind == 0:
                batch.append(End(None, time))
            elif kind <= 2 and notes:
                old = draw(st.sampled_from(notes))
                batch.append(End(old, time))
                if draw(st.booleans()):
                    notes.append(old._replace(start=draw(st.integers(0, MEMORY)), when=time))
                    batch.append(notes[-1])
            else:
                since = max(0, time - draw(st.integers(0, 3)))
                start, size = draw(st.integers(0, MEMORY)), draw(st.integers(0, MEMORY // 2))
                notes.append(note(start, size, str(len(notes)), since=since, when=time))
                batch.append(notes[-1])
        batches.append(batch)
    return batches


@settings(max_examples=400, deadline=None)
@given(histories())
def test_every_address_and_time_is_as_in_the_slow_model(batches):
    """After each batch, now and at every time, the table and the replay agree."""
    table, entries = Table(), []
    for batch in batches:
        table.add(batch)
        entries += batch
        for time in (None, *range(-1, 12)):
            for address in range(0, MEMORY * 2, 3):
                found, expected = table.lookup(address, time), slow(entries, address, time)
                assert found == expected
                assert found is None or found[0] is expected[0]
    assert len(table) == len(entries)


@settings(max_examples=100, deadline=None)
@given(histories())
def test_the_current_ranges_are_those_of_the_look_ups(batches):
    """`current` is sorted and disjoint, and says of each address what `lookup` says."""
    table = Table()
    for batch in batches:
        table.add(batch)
    ranges = table.current()
    assert all(low < high for low, high, _ in ranges)
    assert all(one[1] <= two[0] for one, two in pairwise(ranges))
    for address in range(MEMORY * 2):
        here = [found for low, high, found in ranges if low <= address < high]
        looked_up = table.lookup(address)
        assert here == ([looked_up[0]] if looked_up else [])


def test_the_later_note_wins_and_trims():
    """A note in the middle of another leaves its two ends."""
    table = Table()
    table.add([note(100, 30, "old", when=1), note(110, 10, "new", when=2)])
    assert [(low, high, found.name) for low, high, found in table.current()] == [
        (100, 110, "old"),
        (110, 120, "new"),
        (120, 130, "old"),
    ]
    assert table.lookup(125) == (note(100, 30, "old", when=1), 25)


def test_a_time_gives_what_was_there_then():
    """Before the later note, the address has the earlier name; before both, none."""
    table = Table()
    table.add([note(100, 30, "old", when=10), note(100, 30, "new", when=20)])
    names = [found and found[0].name for found in (table.lookup(105, t) for t in (9, 10, 19, 20))]
    assert names == [None, "old", "old", "new"]


def test_a_note_without_an_exact_time_names_what_nothing_else_names():
    """Between `since` and `when`, a note yields to one that is certain, and only to that."""
    table = Table()
    table.add([note(100, 10, "certain", when=1), note(100, 20, "perhaps", since=2, when=9)])
    assert table.lookup(105, 5) == (note(100, 10, "certain", when=1), 5)
    assert table.lookup(115, 5) == (note(100, 20, "perhaps", since=2, when=9), 15)
    assert table.lookup(115, 1) is None


def test_a_moved_note_is_nowhere_else():
    """Where it was there is nothing; what was loaded there before the move stays."""
    old = note(100, 20, "moved", when=1)
    table = Table()
    table.add([old, note(100, 5, "other", when=2)])
    table.add([End(old, 3), old._replace(start=200, when=3)])
    assert table.lookup(110) is None
    assert table.lookup(110, 2) == (old, 10)
    assert table.lookup(102)[0].name == "other"
    assert table.lookup(205)[0].name == "moved"


def test_everything_ends():
    """After an End of everything the past is still there."""
    table = Table()
    table.add([note(100, 20, when=1), End(None, 5)])
    assert (table.lookup(110), table.lookup(110, 5)) == (None, None)
    assert table.lookup(110, 4)
    assert table.current() == []


def test_the_ends_of_the_address_space_are_addresses():
    """The first and the last byte of memory have names too; an empty table has none."""
    table = Table()
    assert table.lookup(0) is table.lookup(2**64 - 1, 3) is None
    table.add([note(0, 1, "first"), note(2**64 - 1, 1, "last"), note(5, 0, "empty")])
    assert table.lookup(0)[0].name == "first"
    assert table.lookup(2**64 - 1)[0].name == "last"
    assert table.lookup(5) is None


def test_reuse_of_one_range_keeps_every_generation():
    """10 000 notes at one place, added one by one, are all found by their time, soon."""
    table = Table()
    for time in range(10_000):
        table.add([note(4096, 64, str(time), when=time)])
        table.lookup(4100)
    assert all(table.lookup(4100, time)[0].name == str(time) for time in range(0, 10_000, 7))
