# SPDX-License-Identifier: MIT
"""capture(): every event, in order, with named values, and nothing left behind.

Knows usdt.testing only; that its events are a tracer's is for tests/trace to show.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import pytest
from forced import Recorder

import usdt
from usdt import u8, u64
from usdt.testing import Event, capture


@pytest.mark.parametrize("loaded", [False, True], ids=["unloaded", "loaded"])
def test_events_have_names_and_values_in_order(shop: usdt.Provider, loaded: bool) -> None:
    """Loaded or not, of any provider, by call, fire, keyword, default and lazy."""

    @shop.probe
    def order(id: u64, customer: str = "nobody") -> None: ...

    bank = usdt.Provider("bank")
    paid = bank.add_probe("paid", cents=u64)
    if loaded:
        shop.load()
    with capture() as events:
        order(1, "ada")
        paid.fire(3)
        order(id=2)
        order.lazy(lambda: (4, "eve"))
    order(5, "late")
    assert events == [
        ("shop", "order", {"id": 1, "customer": "ada"}),
        ("bank", "paid", {"cents": 3}),
        ("shop", "order", {"id": 2, "customer": "nobody"}),
        ("shop", "order", {"id": 4, "customer": "eve"}),
    ]
    assert list(events[0].args) == ["id", "customer"]
    assert str(events[0]) == "shop:order id=1 customer='ada'"
    assert isinstance(events[0], Event)


def test_every_probe_is_enabled_inside(shop: usdt.Provider) -> None:
    """`if probe:` runs as under a tracer, also for probes declared in the block."""
    before = shop.add_probe("before")
    with capture() as events:
        later = usdt.Provider("later").add_probe("later")
        assert before
        assert later
        assert before.enabled
        before()
        later()
    assert not before
    assert not later
    assert [event.name for event in events] == ["before", "later"]


def test_no_warning_inside(shop: usdt.Provider, caplog: pytest.LogCaptureFixture) -> None:
    """A captured probe needs no load(); outside again, the warning is still due."""
    probe = shop.add_probe("event")
    with capture():
        probe()
        probe.lazy(tuple)
    assert caplog.record_tuples == []
    probe()
    assert [level for _, level, _ in caplog.record_tuples] == [logging.WARNING]


def test_what_a_tracer_would_not_see_is_not_captured(
    shop: usdt.Provider, unraisable: list[tuple[type, str]]
) -> None:
    """A value that does not fit is dropped and reported, or raised when strict."""
    probe = shop.add_probe("event", value=u8)
    with capture() as events:
        probe(256)
        probe(255)
        usdt.strict()
        with pytest.raises(OverflowError):
            probe(256)
    assert [event.args for event in events] == [{"value": 255}]
    assert [kind for kind, _ in unraisable] == [OverflowError]
    assert probe.dropped == 1


def test_buffers_are_kept_as_they_were(shop: usdt.Provider) -> None:
    """A buffer that is reused after the call does not change the event."""
    probe = shop.add_probe("event", data=bytes)
    data = bytearray(b"first")
    view = memoryview(bytearray(b"view"))
    with capture() as events:
        probe(data)
        data[:] = b"other"
        probe(view)
        view.release()
        probe(b"bytes")
    assert [event.args["data"] for event in events] == [b"first", b"view", b"bytes"]


def test_captures_nest(shop: usdt.Provider) -> None:
    """The inner block's events are the outer's too; leaving one ends only that one."""
    probe = shop.add_probe("event", value=u8)
    with capture() as outer:
        probe(1)
        with capture() as inner:
            probe(2)
        probe(3)
    probe(4)
    assert [event.args["value"] for event in outer] == [1, 2, 3]
    assert [event.args["value"] for event in inner] == [2]


def test_an_exception_ends_the_capture(shop: usdt.Provider) -> None:
    """After a failed block no probe is enabled."""
    probe = shop.add_probe("event")

    def failing() -> None:
        with capture() as events:
            probe()
            assert events == []

    with pytest.raises(AssertionError):
        failing()
    assert not probe


def test_a_tracer_sees_captured_events_too(recorder: Recorder, shop: usdt.Provider) -> None:
    """capture() adds a listener and takes none away."""
    probe = shop.add_probe("event", value=u8)
    recorder.attach(probe)
    with capture() as events:
        probe(7)
    probe(8)
    assert (len(events), recorder.calls, recorder.words[0]) == (1, 2, 8)


def test_events_of_threads_are_captured(shop: usdt.Provider) -> None:
    """The capture is the process's, not the thread's: nothing is lost."""
    probe = shop.add_probe("event", value=u64)

    def fire(first: int) -> None:
        for value in range(first, first + 1000):
            probe(value)

    with capture() as events:
        threads = [threading.Thread(target=fire, args=(i * 1000,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(event.args["value"] for event in events) == list(range(4000))


def test_a_listener_may_fire_and_declare(shop: usdt.Provider) -> None:
    """What a listener does with probes ends, and does not crash."""
    probe = shop.add_probe("event", value=u8)
    heard = []

    def hear(heard_probe: usdt.Probe[...], values: tuple[int, ...]) -> None:
        heard.append(values)
        if values[0] < 5:
            probe(values[0] + 1)
        else:
            probe._listener = None

    probe._listener = hear
    probe(0)
    assert heard == [(value,) for value in range(6)]
    assert not probe


@pytest.mark.parametrize("end", [lambda probe: delattr(probe, "_listener"), lambda probe: None])
def test_a_listener_that_raises_is_heard(
    shop: usdt.Provider, end: Callable[[usdt.Probe[...]], None]
) -> None:
    """A test's own assertion in a listener fails the test; the values are not leaked."""
    probe = shop.add_probe("event", value=bytes)
    data = bytearray(b"abc")

    def hear(heard_probe: usdt.Probe[...], values: tuple[bytes]) -> None:
        end(probe)
        raise AssertionError(values)

    probe._listener = hear
    with pytest.raises(AssertionError):
        probe(data)
    del probe._listener
    data.append(1)
    assert not probe
