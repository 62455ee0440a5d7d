# SPDX-License-Identifier: MIT
"""What a recording comes down to, for a terminal: top functions, names missing and why, threads.

Pure: a Profile in, a Summary or lines out. Must not know whether the terminal has colours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ustack.frame import Reason
from ustack.render.kinds import KINDS
from ustack.render.profile import Profile
from ustack.render.text import amount, cells, escaped, fit, plural, share
from ustack.render.tree import Function, function_of

__all__ = ["Row", "Summary", "document", "lines", "summarize"]

_MIN_WIDTH = 40
_BOLD, _DIM, _PLAIN = "\x1b[1m", "\x1b[2m", "\x1b[0m"


@dataclass(frozen=True, slots=True)
class Row:
    """own: value of the samples that end in the function; total: of those that it is in."""

    function: Function
    own: int
    total: int


@dataclass(frozen=True, slots=True)
class Summary:
    """rows: the functions, largest own value first, then total
    frames: all frames of all stacks, each as often as its value; named: those with a name
    reasons: frames without, by reason, the most frequent first
    cut: value of the samples whose stack is marked as cut
    processes: (pid, comm, value); threads: (pid, tid, comm, value); largest first
    """

    total: int
    rows: tuple[Row, ...]
    frames: int
    named: int
    reasons: tuple[tuple[Reason, int], ...]
    cut: int
    processes: tuple[tuple[int, str, int], ...]
    threads: tuple[tuple[int, int, str, int], ...]


def summarize(profile: Profile) -> Summary:
    """A function that calls itself is counted once per sample. A mark of a cut is no frame."""
    own: Counter[Function] = Counter()
    total: Counter[Function] = Counter()
    reasons: Counter[Reason] = Counter()
    threads: Counter[tuple[int, int, str]] = Counter()
    known: dict[int, Function] = {}
    frames = cut = 0
    for sample in profile.samples:
        value = sample.value
        threads[sample.pid, sample.tid, sample.comm] += value
        seen = set()
        is_cut = False
        for frame in sample.stack:
            function = known.get(id(frame))
            if function is None:
                function = known[id(frame)] = function_of(frame)
            if frame.why is Reason.CUT:
                is_cut = True
                continue
            frames += value
            if frame.why is not None:
                reasons[frame.why] += value
            seen.add(function)
        for function in seen:
            total[function] += value
        if sample.stack:
            own[known[id(sample.stack[-1])]] += value
        cut += value * is_cut
    rows = (Row(function, own[function], total[function]) for function in total | own)
    processes: Counter[tuple[int, str]] = Counter()
    for (pid, _, comm), value in threads.items():
        processes[pid, comm] += value
    return Summary(
        total=profile.total,
        rows=tuple(sorted(rows, key=lambda row: (-row.own, -row.total, row.function.label))),
        frames=frames,
        named=frames - sum(reasons.values()),
        reasons=tuple(sorted(reasons.items(), key=lambda item: (-item[1], item[0].word))),
        cut=cut,
        processes=tuple((pid, comm, value) for (pid, comm), value in _ranked(processes)),
        threads=tuple((*thread, value) for thread, value in _ranked(threads)),
    )


def _ranked(counts: Counter[Any]) -> list[tuple[Any, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def document(profile: Profile, summary: Summary, *, top: int = 15) -> dict[str, Any]:
    """The values of `lines` for JSON."""
    return {
        "unit": profile.unit,
        "total": summary.total,
        "lost": profile.lost,
        "frames": {
            "total": summary.frames,
            "named": summary.named,
            "unknown": {reason.word: count for reason, count in summary.reasons},
        },
        "cut": summary.cut,
        "top": [
            {"kind": row.function.kind, "name": row.function.label, "module": row.function.module,
             "file": row.function.file, "own": row.own, "total": row.total}
            for row in summary.rows[:top]
        ],
        "threads": [
            {"pid": pid, "tid": tid, "comm": comm, "value": value}
            for pid, tid, comm, value in summary.threads
        ],
    }  # fmt: skip


def lines(
    profile: Profile, summary: Summary, *, width: int = 80, colour: bool = False, top: int = 15
) -> Iterator[str]:
    """No line is wider than `width`, or than 40 where that is less."""
    width = max(width, _MIN_WIDTH)
    bold, dim, plain = (_BOLD, _DIM, _PLAIN) if colour else ("", "", "")
    yield bold + fit(_head(profile, summary), width) + plain
    if not summary.total:
        yield fit("no samples: nothing ran, or nothing matched the event", width)
        return
    yield from _table(summary, width, top, (bold, dim, plain))
    yield ""
    yield fit(_names(summary), width)
    if summary.reasons:
        reason = summary.reasons[0][0]
        yield from _wrapped(f"{reason.word}: {reason.hint}", width)
    if summary.cut:
        yield fit(f"stacks cut: {share(summary.cut, summary.total)} of the samples", width)
    if profile.lost:
        yield fit(f"lost: {plural(profile.lost, 'sample')}, not in any number here", width)
    yield from _tasks(summary, width)


def _head(profile: Profile, summary: Summary) -> str:
    facts = [amount(summary.total, profile.unit)]
    if profile.duration:
        facts.append(f"{profile.duration / 1e9:.1f} s")
    processes = len({pid for pid, _, _ in summary.processes})
    facts.append(f"{processes:,} process{'' if processes == 1 else 'es'}")
    facts.append(plural(len({thread[:2] for thread in summary.threads}), "thread"))
    if profile.event:
        facts.append(escaped(profile.event))
    return ", ".join(facts)


def _table(summary: Summary, width: int, top: int, styles: tuple[str, str, str]) -> Iterator[str]:
    bold, dim, plain = styles
    kinds = max(len(look.label) for look in KINDS.values())
    yield f"{bold}{'self':>8} {'total':>8}  {'':{kinds}} function{plain}"
    room = width - 20 - kinds
    for row in summary.rows[:top]:
        function = row.function
        shares = f"{share(row.own, summary.total):>8} {share(row.total, summary.total):>8}"
        name = fit(escaped(function.label), room)
        where = escaped((function.file or function.module).rpartition("/")[2])
        left = room - cells(name) - 2
        place = f"  {dim}{fit(where, left)}{plain}" if where and left >= 6 else ""
        yield f"{shares}  {KINDS[function.kind].label:<{kinds}} {name}{place}"
    more = len(summary.rows) - top
    if more > 0:
        yield fit(f"{'':18} and {plural(more, 'function')} more", width)


def _names(summary: Summary) -> str:
    if not summary.frames:
        return "frames named: none, the stacks are empty"
    text = f"frames named: {share(summary.named, summary.frames)}"
    reasons = [f"{reason.word} {share(count, summary.frames)}" for reason, count in summary.reasons]
    return text + (f"; unknown: {', '.join(reasons)}" if reasons else "")


def _wrapped(text: str, width: int) -> Iterator[str]:
    line = "  "
    for word in text.split():
        if len(line) + 1 + len(word) > width and line.strip():
            yield line
            line = "   "
        line += " " + word if line.strip() else word
    yield fit(line, width)


def _tasks(summary: Summary, width: int, top: int = 8) -> Iterator[str]:
    """Threads where there are several; of one thread there is nothing more to say."""
    if len(summary.threads) < 2:
        return
    yield ""
    yield f"{'share':>8} {'pid':>10} {'tid':>10}  thread"
    for pid, tid, comm, value in summary.threads[:top]:
        name = fit(escaped(comm), width - 33)
        yield f"{share(value, summary.total):>8} {pid:>10} {tid:>10}  {name}"
    yield from _rest(summary.threads[top:], summary.total)


def _rest(threads: Iterable[tuple[int, int, str, int]], total: int) -> Iterator[str]:
    values = [value for *_, value in threads]
    if values:
        yield f"{share(sum(values), total):>8} {plural(len(values), 'more thread')}"
