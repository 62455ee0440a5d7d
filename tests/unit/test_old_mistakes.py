# SPDX-License-Identifier: MIT
"""What libstapsdt and its bindings get wrong, one test each, in this library.

Needs no tracer; those of the list that do are in tests/trace, crashes and leaks of unloading
in test_lifecycle.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from forced import Recorder, force, mappings

import usdt
from usdt import stapsdt, u64
from usdt.stapsdt import ArgTypes


@pytest.mark.parametrize("count", [6, 7, 8, 12])
def test_libstapsdt_overruns_an_array_with_seven_arguments(recorder: Recorder, count: int) -> None:
    """7 to 12 arguments arrive; salp, which registers five of six, loses none either."""
    probe = stapsdt.Provider("p").add_probe("x", *[ArgTypes.uint64] * count)
    assert len(probe._probe.spec.args) == count
    recorder.attach(probe._probe)
    probe.fire(*range(1, count + 1))
    assert recorder.words[:count] == list(range(1, count + 1))


def test_libstapsdt_overruns_with_thirteen_too() -> None:
    """More than tracers can read is refused where it is declared."""
    with pytest.raises(usdt.SpecError, match="13 operands"):
        stapsdt.Provider("p").add_probe("x", *[ArgTypes.uint8] * 13)


def test_libstapsdt_never_fires_a_probe_added_after_load() -> None:
    """It fires after the next load(), and says until then that it does not."""
    provider = stapsdt.Provider("p")
    provider.add_probe("early")
    provider.load()
    late = provider.add_probe("late")
    assert provider._provider.why_not is not None
    provider.load()
    force(late._probe)
    assert late.fire() is True


def test_libstapsdt_leaks_a_second_load() -> None:
    """Loading twice maps once, and one unload takes it away."""
    provider = stapsdt.Provider("p")
    provider.add_probe("x")
    provider.load()
    path = provider._provider.paths[0]
    before = mappings(path)
    provider.load()
    assert mappings(path) == before
    provider.unload()
    assert mappings(path) == []


def test_libstapsdt_maps_a_hole_of_two_megabytes() -> None:
    """The mappings of a stub are as large as its segments, rounded to pages."""
    provider = stapsdt.Provider("p")
    provider.add_probe("x")
    provider.load()
    edges = [
        int(edge, 16)
        for line in mappings(provider._provider.paths[0])
        for edge in line.split()[0].split("-")
    ]
    page = os.sysconf("SC_PAGESIZE")
    assert max(edges) - min(edges) <= 4 * max(page, 0x1000)


def test_libstapsdt_leaves_files_behind(python: Callable[..., str], stub_dir: Path) -> None:
    """Processes that are killed leave the one file that the next ones use."""
    program = """
import os, signal
from usdt import stapsdt
provider = stapsdt.Provider("p")
provider.add_probe("x")
provider.load()
if os.fork() == 0:
    os.kill(os.getpid(), signal.SIGKILL)
os.wait()
"""
    for _ in range(3):
        python(program)
    assert len(list(stub_dir.iterdir())) == 1


def test_python_stapsdt_cuts_integers_to_32_bits(recorder: Recorder) -> None:
    """All 64 bits arrive, and the sign."""
    probe = stapsdt.Provider("p").add_probe("x", ArgTypes.uint64, ArgTypes.int64)
    recorder.attach(probe._probe)
    probe.fire(2**33 + 7, -3)
    assert recorder.words[:2] == [2**33 + 7, 2**64 - 3]


def test_python_stapsdt_returns_false_when_loading_worked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """load() is True when tracers see the probes, False when they do not."""
    provider = stapsdt.Provider("p")
    provider.add_probe("x")
    with monkeypatch.context() as patch:
        patch.setenv("USDT_NO_RUNTIME_STUBS", "1")
        assert provider.load() is False
    assert provider.load() is True


@pytest.mark.parametrize("state", ["unloaded", "disabled", "enabled"])
@pytest.mark.parametrize("args", [(), (1,), (1, 2, 3)])
def test_python_stapsdt_sends_stack_garbage_for_missing_arguments(
    recorder: Recorder, state: str, args: tuple[int, ...]
) -> None:
    """A wrong count raises in every state and reaches no tracer."""
    provider = stapsdt.Provider("p")
    probe = provider.add_probe("x", ArgTypes.uint64, ArgTypes.int32)
    if state == "disabled":
        provider.load()
    elif state == "enabled":
        recorder.attach(probe._probe)
    with pytest.raises(TypeError):
        probe.fire(*args)
    assert state != "enabled" or recorder.calls == 0


def test_python_stapsdt_cuts_strings_at_nul(
    recorder: Recorder, unraisable: list[tuple[type, str]]
) -> None:
    """The event is dropped and reported, not changed."""
    probe = stapsdt.Provider("p").add_probe("x", ArgTypes.uint64)
    recorder.attach(probe._probe)
    probe.fire("before\0after")
    assert recorder.calls == 0
    assert [kind for kind, _ in unraisable] == [ValueError]


def test_python_stapsdt_shows_type_errors_only_while_traced() -> None:
    """A strict program sees them in its tests, with no tracer."""
    usdt.strict()
    probe = stapsdt.Provider("p").add_probe("x", ArgTypes.int32)
    with pytest.raises(TypeError):
        probe.fire("no number")


def test_python_stapsdt_leaks_the_mapping_of_a_provider_that_is_gone() -> None:
    """When provider and probes are garbage, so is the mapping."""
    provider = stapsdt.Provider("gone")
    probe = provider.add_probe("x")
    provider.load()
    path = provider._provider.paths[0]
    assert mappings(path) != []
    del provider, probe
    assert mappings(path) == []


def test_ruby_stapsdt_frees_the_provider_of_a_living_probe() -> None:
    """A probe alone keeps its provider and its stub, and fires."""
    provider = stapsdt.Provider("p")
    probe = provider.add_probe("x", ArgTypes.uint64)
    provider.load()
    path = provider._provider.paths[0]
    del provider
    gc.collect()
    assert mappings(path) != []
    force(probe._probe)
    assert probe.fire(1) is True
    assert probe._probe.provider.paths == (path,)


def test_node_usdt_leaks_every_string_it_fires(recorder: Recorder) -> None:
    """A fired string has as many references as before, also one that had to be encoded."""
    probe = usdt.Provider("p").add_probe("x", text=str, data=bytes, number=u64)
    recorder.attach(probe)
    values = ("caf\udce9" * 100, bytearray(b"x" * 100), 2**63 + 1)
    before = [sys.getrefcount(value) for value in values]
    blocks = sys.getallocatedblocks()
    for _ in range(10_000):
        probe(*values)
    assert [sys.getrefcount(value) for value in values] == before
    assert sys.getallocatedblocks() - blocks < 100
    assert recorder.calls == 10_000


def test_libstapsdt_crashes_when_unloaded_under_a_firing_thread() -> None:
    """A thread fires through two hundred unloads and loads, enabled all the time."""
    provider = stapsdt.Provider("p")
    probe = provider.add_probe("x", ArgTypes.uint64)
    usdt_probe = probe._probe
    stop = threading.Event()

    def fire() -> None:
        while not stop.is_set():
            probe.fire(1)

    thread = threading.Thread(target=fire)
    provider.load()
    thread.start()
    try:
        for _ in range(200):
            force(usdt_probe)
            provider.unload()
            provider.load()
    finally:
        stop.set()
        thread.join()
