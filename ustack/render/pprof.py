# SPDX-License-Identifier: MIT
"""pprof's profile.proto, gzipped: for `go tool pprof`, Grafana, Pyroscope, Polar Signals.

Owns the part of the protobuf wire format that the message needs: varints and lengths. Format:
github.com/google/pprof proto/profile.proto. Must not know files.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable

from ustack.frame import Frame
from ustack.render.kinds import kind_of
from ustack.render.profile import Profile, Sample

__all__ = ["write"]

_U64 = (1 << 64) - 1


def write(profile: Profile) -> bytes:
    """Equal stacks of a thread are one sample. Labels: `thread`, `pid`, `tid`, and `kind`, that of
    the innermost frame. The file has no time in it but the profile's own."""
    # zlib's own header: gzip.compress() writes another one on some minors.
    squeezed = zlib.compressobj(9, zlib.DEFLATED, 31)
    return squeezed.compress(_Writer().message(profile)) + squeezed.flush()


def _varint(value: int) -> bytes:
    value &= _U64  # negative numbers are their two's complement, in ten bytes
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _int(field: int, value: int) -> bytes:
    """A scalar; zero is the default, and is left out."""
    return _varint(field << 3) + _varint(value) if value else b""


def _bytes(field: int, data: bytes) -> bytes:
    """A string or an embedded message."""
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _packed(field: int, values: Iterable[int]) -> bytes:
    data = b"".join(map(_varint, values))
    return _bytes(field, data) if data else b""


class _Writer:
    """Gives strings, mappings, functions and locations their numbers while samples are written."""

    def __init__(self) -> None:
        self._strings = {"": 0}
        self._mappings: dict[str, int] = {}
        self._functions: dict[tuple[str, str, str], int] = {}
        self._locations: dict[Frame, int] = {}
        self._known: dict[int, int] = {}

    def message(self, profile: Profile) -> bytes:
        types = [("samples", "count")] if profile.unit == "samples" else [("time", "nanoseconds")]
        if profile.unit == "samples" and profile.period:
            types.append(("cpu", "nanoseconds"))
        scales = [1, profile.period][: len(types)]
        samples = self._samples(profile, scales)
        head = b"".join(_bytes(1, self._type(*row)) for row in types)
        tail = _int(9, profile.started or 0) + _int(10, profile.duration)
        if profile.period:
            tail += _bytes(11, self._type("cpu", "nanoseconds")) + _int(12, profile.period)
        comments = filter(None, (profile.title, profile.event, f"lost samples: {profile.lost}"))
        tail += _packed(13, map(self._string, comments))
        tail += _int(14, self._string(types[0][0]))
        middle = samples + self._tables()
        strings = b"".join(
            _bytes(6, text.encode("utf-8", "backslashreplace")) for text in self._strings
        )
        return head + middle + strings + tail

    def _string(self, text: str) -> int:
        return self._strings.setdefault(text, len(self._strings))

    def _type(self, type: str, unit: str) -> bytes:
        """ValueType: type 1, unit 2."""
        return _int(1, self._string(type)) + _int(2, self._string(unit))

    def _samples(self, profile: Profile, scales: list[int]) -> bytes:
        """Sample: location_id 1 (innermost first), value 2, label 3."""
        merged: Counter[tuple[tuple[int, ...], int, int, str, str]] = Counter()
        for sample in profile.samples:
            # Callers get their numbers first: pprof takes the first mapping for the program.
            path = tuple(map(self._location, sample.stack))[::-1]
            merged[path, sample.pid, sample.tid, sample.comm, _leaf(sample)] += sample.value
        out = []
        for (path, pid, tid, comm, kind), value in merged.items():
            labels = [
                self._label("thread", text=comm), self._label("pid", number=pid),
                self._label("tid", number=tid), self._label("kind", text=kind),
            ]  # fmt: skip
            body = _packed(1, path) + _packed(2, [value * scale for scale in scales])
            out.append(_bytes(2, body + b"".join(_bytes(3, label) for label in labels if label)))
        return b"".join(out)

    def _label(self, key: str, *, text: str = "", number: int = 0) -> bytes:
        """Label: key 1, str 2, num 3; nothing for a value that is not there."""
        if not text and not number:
            return b""
        return _int(1, self._string(key)) + _int(2, self._string(text)) + _int(3, number)

    def _location(self, frame: Frame) -> int:
        number = self._known.get(id(frame))
        if number is None:
            number = self._locations.setdefault(frame, len(self._locations) + 1)
            self._known[id(frame)] = number
        return number

    def _tables(self) -> bytes:
        """Location: id 1, mapping_id 2, address 3, line 4 {function_id 1, line 2}.
        Mapping: id 1, filename 5, has_functions 7, has_filenames 8, has_line_numbers 9.
        Function: id 1, name 2, system_name 3, filename 4."""
        out = []
        for frame, number in self._locations.items():
            line = _int(1, self._function(frame)) + _int(2, frame.line or 0)
            mapping = 0
            if frame.module:
                mapping = self._mappings.setdefault(frame.module, len(self._mappings) + 1)
            body = _int(1, number) + _int(2, mapping) + _int(3, frame.address or 0)
            out.append(_bytes(4, body + _bytes(4, line)))
        for (kind, name, file), number in self._functions.items():
            names = _int(2, self._string(name)) + _int(3, self._string(f"{kind}:{name}"))
            out.append(_bytes(5, _int(1, number) + names + _int(4, self._string(file))))
        mappings = [
            # The flags keep pprof from asking symbol servers for what is named already.
            _bytes(3, _int(1, number) + _int(5, self._string(module)) + _int(7, 1) + _int(8, 1)
                   + _int(9, 1))
            for module, number in self._mappings.items()
        ]  # fmt: skip
        return b"".join(mappings + out)

    def _function(self, frame: Frame) -> int:
        key = kind_of(frame), str(frame), frame.file or ""
        return self._functions.setdefault(key, len(self._functions) + 1)


def _leaf(sample: Sample) -> str:
    return kind_of(sample.stack[-1]) if sample.stack else ""
