# SPDX-License-Identifier: MIT
r"""Folded stacks, one line each: `shop-4242;main;handler_[p];do_sys_open_[k] 17`.

Owns both directions of the format of Brendan Gregg's flamegraph.pl, with escapes for names that
its own tools would misread (docs/profile-format.md). Must not know where the text goes.
"""

from __future__ import annotations

import re
from collections import Counter

from ustack.frame import AbsAddr, Frame, Kind, Reason
from ustack.render.profile import Profile, Sample, Unit
from ustack.render.text import escaped

__all__ = ["FoldedError", "read", "write"]

#: `_[k]` and `_[j]` are flamegraph.pl's own (its palette `java`); C has none.
_SUFFIX: dict[Kind, str] = {
    "kernel": "_[k]", "native": "", "jit": "_[j]", "python": "_[p]", "ruby": "_[r]",
}  # fmt: skip
_KIND: dict[str, Kind] = {suffix: kind for kind, suffix in _SUFFIX.items() if suffix}

_REASON = {reason.word: reason for reason in Reason}
_UNKNOWN = re.compile(r"(?:(0x[0-9a-f]{1,16}) )?\(([a-z ]+)(?:: (.*))?\)", re.DOTALL)
_ESCAPE = re.compile(r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8}))")
_PROCESS = re.compile(r"(.*)-([0-9]{1,10})", re.DOTALL)


class FoldedError(ValueError):
    """A line that is no folded stack."""


def write(profile: Profile) -> bytes:
    """Equal stacks of a process are one line; lines are sorted. Lines of source, threads and times
    have no place in this format."""
    rows: Counter[str] = Counter()
    words: dict[int, str] = {}
    for sample in profile.samples:
        if not sample.value:
            continue
        path = [f"{escaped(sample.comm, ';' + chr(92))}-{sample.pid}"]
        for frame in sample.stack:
            word = words.get(id(frame))
            if word is None:
                word = words[id(frame)] = _word(frame)
            path.append(word)
        rows[";".join(path)] += sample.value
    return "".join(f"{stack} {value}\n" for stack, value in sorted(rows.items())).encode()


def _word(frame: Frame) -> str:
    text = escaped(str(frame), ";\\")
    if text[-4:] in _KIND:
        text = text[:-3] + "\\x5b" + text[-2:]  # a name that ends like a suffix
    return text + _SUFFIX[frame.kind]


def read(data: bytes, *, unit: Unit = "samples") -> Profile:
    """What `write` wrote, or another tool; the first element of a stack is its process.

    Raises FoldedError for the first line that has no count.
    """
    samples = []
    frames: dict[str, Frame] = {}
    for number, line in enumerate(data.decode("utf-8", "replace").split("\n"), 1):
        line = line.removesuffix("\r")
        if not line:
            continue
        stack, _, count = line.rpartition(" ")
        if not (count.isascii() and count.isdigit() and len(count) < 20):
            raise FoldedError(
                f"line {number} does not end in a count: {escaped(line[:60])!r}; "
                "fold the stacks first, for example with stackcollapse-perf.pl"
            )
        process, *words = stack.split(";")
        match = _PROCESS.fullmatch(process)
        comm, pid = (match[1], int(match[2])) if match else (process, 0)
        for word in words:
            if word not in frames:
                frames[word] = _frame(word)
        path = tuple(frames[word] for word in words)
        samples.append(Sample(path, int(count), pid=pid, tid=pid, comm=_plain(comm)))
    return Profile(tuple(samples), unit=unit)


def _frame(word: str) -> Frame:
    kind = _KIND.get(word[-4:], "native")
    name = _plain(word[: len(word) - len(_SUFFIX[kind])])
    match = _UNKNOWN.fullmatch(name)
    why = _REASON.get(match[2]) if match else None
    if match is None or why is None or (match[3] is not None and match[1] is None):
        return Frame(kind, name)
    address = None if match[1] is None else AbsAddr(int(match[1], 16))
    frame = Frame(kind, None, module=match[3], address=address, why=why)
    return frame if str(frame) == name else Frame(kind, name)


def _plain(text: str) -> str:
    return _ESCAPE.sub(_character, text) if "\\" in text else text


def _character(match: re.Match[str]) -> str:
    code = int(match[1] or match[2] or match[3], 16)
    return chr(code) if code < 0x110000 else match[0]
