# SPDX-License-Identifier: MIT
"""Samples -> one tree of functions, equal paths merged: what the flame graphs draw.

Pure. Must not know widths, colours or file formats.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ustack.frame import Frame
from ustack.render.kinds import kind_of
from ustack.render.profile import Profile, Sample

__all__ = ["Function", "Node", "Tree", "function_of", "grow"]


@dataclass(frozen=True, slots=True)
class Function:
    """What frames have in common that are drawn as one.

    kind:      a key of kinds.KINDS
    label:     the name; `(no symbols: libc.so.6)` for all unknown addresses of one file
    module, file:  as of the frames, "" where not known
    """

    kind: str
    label: str
    module: str = ""
    file: str = ""


def function_of(frame: Frame) -> Function:
    """Unknown addresses differ in every sample: they are one function per file and reason."""
    module, file = frame.module or "", frame.file or ""
    if frame.why is None:
        return Function(kind_of(frame), str(frame.name), module, file)
    where = f": {module.rpartition('/')[2]}" if module else ""
    return Function(kind_of(frame), f"({frame.why.word}{where})", module, file)


class Node:
    """One function under one path of callers.

    value:  of all samples that go through it; own: of those that end in it
    spots:  line of the source, or address where there is no name -> value; None without any
    """

    __slots__ = ("children", "function", "own", "spots", "value")

    def __init__(self, function: Function) -> None:
        self.function = function
        self.value = 0
        self.own = 0
        self.children: dict[int, Node] = {}
        self.spots: dict[int, int] | None = None

    def sorted_children(self) -> list[Node]:
        """The largest first, equal ones by name: the order does not depend on the recording."""
        if len(self.children) < 2:
            return list(self.children.values())
        return sorted(
            self.children.values(),
            key=lambda node: (
                -node.value, node.function.label, node.function.module, node.function.file,
                node.function.kind,
            ),
        )  # fmt: skip

    def hottest(self) -> tuple[int, int]:
        """(the spot with the largest value, number of spots); (0, 0) where there are none."""
        if self.spots is None:
            return 0, 0
        if len(self.spots) == 1:
            return next(iter(self.spots)), 1
        return min(self.spots.items(), key=lambda item: (-item[1], item[0]))[0], len(self.spots)


@dataclass(frozen=True, slots=True)
class Tree:
    """root: has the total, its children are processes where there are several, else the stacks'
    first frames
    depth: rows below the root; count: nodes below the root
    kinds: value of the samples that end in a kind; that go through it, where it is `cut`: nothing
    ends in the mark of a missing caller
    """

    root: Node
    depth: int
    count: int
    kinds: dict[str, int]

    def walk(self, least: float = 0) -> Iterator[tuple[Node, int, int]]:
        """(node, depth, sum of the values to its left), callers before what they call; without
        nodes below a value."""
        pending = [(self.root, 0, 0)]
        while pending:
            node, depth, left = pending.pop()
            yield node, depth, left
            rows = []
            for child in node.sorted_children():
                if child.value < least:
                    break
                rows.append((child, depth + 1, left))
                left += child.value
            pending.extend(reversed(rows))


def grow(profile: Profile) -> Tree:
    """The tree of a profile; samples of value 0 have no place in it."""
    numbers: dict[Function, int] = {}
    functions: list[Function] = []
    cuts: set[int] = set()

    def number_of(function: Function) -> int:
        number = numbers.setdefault(function, len(functions))
        if number == len(functions):
            functions.append(function)
            if function.kind == "cut":
                cuts.add(number)
        return number

    # Hashing a frame costs more than all else here, and recordings share their frames.
    known: dict[int, tuple[int, int | None]] = {}
    several = len({(sample.pid, sample.comm) for sample in profile.samples}) > 1
    root = Node(Function("process", "all"))
    depth = count = cut = 0
    ends: dict[int, int] = {}
    for sample in profile.samples:
        value = sample.value
        if not value:
            continue
        node = root
        root.value += value
        path: list[tuple[int, int | None]] = []
        if several:
            path.append((number_of(_process(sample)), None))
        for frame in sample.stack:
            step = known.get(id(frame))
            if step is None:
                spot = frame.line if frame.why is None else frame.address
                step = known[id(frame)] = (number_of(function_of(frame)), spot)
            path.append(step)
        depth = max(depth, len(path))
        for number, spot in path:
            child = node.children.get(number)
            if child is None:
                child = node.children[number] = Node(functions[number])
                count += 1
            child.value += value
            if spot is not None:
                if child.spots is None:
                    child.spots = {spot: value}
                else:
                    child.spots[spot] = child.spots.get(spot, 0) + value
            node = child
        node.own += value
        if path:
            ends[number] = ends.get(number, 0) + value
        if cuts and not cuts.isdisjoint(step[0] for step in path):
            cut += value
    kinds = dict.fromkeys((function.kind for function in functions), 0)
    for number, value in ends.items():
        kinds[functions[number].kind] += value
    if cuts:
        kinds["cut"] = cut
    return Tree(root, depth, count, kinds)


def _process(sample: Sample) -> Function:
    return Function("process", f"{sample.comm or 'process'} ({sample.pid})")
