# SPDX-License-Identifier: MIT
"""What a recording is once every address has a name: a Profile of Samples.

Owns the nouns every writer takes. Must not know where samples come from, nor any file format.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Literal

from ustack.frame import Frame

__all__ = ["Profile", "Sample", "Unit"]

#: What a sample's value counts: times a stack was seen, or nanoseconds spent in it.
Unit = Literal["samples", "ns"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One stack, and how much of it.

    stack:    root first; may be empty
    value:    in the profile's unit, from 0
    time:     nanoseconds of CLOCK_BOOTTIME; None where equal stacks were counted together
    """

    stack: tuple[Frame, ...]
    value: int
    _: KW_ONLY
    pid: int = 0
    tid: int = 0
    comm: str = ""
    time: int | None = None

    def __post_init__(self) -> None:
        if self.value < 0:
            raise ValueError(f"a sample of {self.value}: values count from 0")


@dataclass(frozen=True, slots=True)
class Profile:
    """Everything a recording has to show.

    title:     one line for people
    event:     what was recorded, as it was asked for: `profile:hz:99`
    started:   nanoseconds since 1970, None where not known
    duration:  nanoseconds
    period:    nanoseconds between two samples of one CPU; 0 for what is not sampled by time
    lost:      samples the kernel had and nobody could take
    """

    samples: tuple[Sample, ...]
    _: KW_ONLY
    unit: Unit = "samples"
    title: str = ""
    event: str = ""
    started: int | None = None
    duration: int = 0
    period: int = 0
    lost: int = 0

    @property
    def total(self) -> int:
        """The sum of all values."""
        return sum(sample.value for sample in self.samples)
