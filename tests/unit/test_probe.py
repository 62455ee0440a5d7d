# SPDX-License-Identifier: MIT
"""One probe: what the stub receives for each value, and what happens to a value that does not fit.

Fires into a recorder in place of a stub; where stubs come from is other tests' business.
"""

from __future__ import annotations

import array
import copy
import ctypes
import functools
import inspect
import math
import mmap
import pickle
import struct
import sys
import weakref

import pytest
from forced import Recorder
from hypothesis import given
from hypothesis import strategies as st

import usdt
from stubgen.argtypes import BY_NAME
from usdt import u8, u64

INTEGERS = {
    **{f"i{bits}": (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in (8, 16, 32, 64)},
    **{f"u{bits}": (0, 2**bits - 1) for bits in (8, 16, 32, 64)},
    "ptr": (0, 2**64 - 1),
    "bool": (0, 1),
}


class Index:
    """A number by its __index__, as numpy's integers are."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        return self.value


class Real:
    """A number by its __float__, as numpy's floats are."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __float__(self) -> float:
        return self.value


def probe_of(type_: str, name: str = "event") -> usdt.Probe[...]:
    """A probe of one argument, `value`, that nothing listens to."""
    return usdt.Provider("shop").add_probe(name, value=type_)


def masked(word: int, size: int) -> int:
    """The part of a register that a tracer reads for an operand of `size` bytes."""
    return word & ((1 << 8 * abs(size)) - 1)


def ints_that_fit() -> list[tuple[str, int]]:
    """Each integer type with its extremes and their neighbours inside."""
    return [
        (name, value)
        for name, (least, most) in INTEGERS.items()
        for value in sorted({least, least + 1, -1, 0, 1, most - 1, most})
        if least <= value <= most
    ]


def ints_that_do_not() -> list[tuple[str, int]]:
    """Each integer type with what is just outside of it, and far outside."""
    return [
        (name, value)
        for name, (least, most) in INTEGERS.items()
        for value in (least - 1, most + 1, 2**64, -(2**63) - 1, 2**100, -(2**100))
    ]


# --- what the stub receives


@pytest.mark.parametrize(("type_", "value"), ints_that_fit())
def test_an_integer_that_fits_arrives(recorder: Recorder, type_: str, value: int) -> None:
    """The operand's bytes are the value's, for an int, a subclass and an __index__ object."""
    probe = probe_of(type_)
    recorder.attach(probe)
    size = BY_NAME[type_].operands[0]
    for given_value in (value, type("Int", (int,), {})(value), Index(value)):
        probe(given_value)
        assert masked(recorder.words[0], size) == masked(value, size)
    assert recorder.calls == 3


@pytest.mark.parametrize(("type_", "value"), ints_that_do_not())
def test_an_integer_that_does_not_fit_is_dropped(
    recorder: Recorder, unraisable: list[tuple[type, str]], type_: str, value: int
) -> None:
    """An integer just or far out of range never reaches the stub; the report names the type."""
    probe = probe_of(type_)
    recorder.attach(probe)
    assert probe(value) is None
    assert probe(Index(value)) is None
    message = f"shop:event: argument 'value' is out of the range of {type_}"
    assert unraisable == [(OverflowError, message)] * 2
    assert (probe.dropped, recorder.calls) == (2, 0)


@given(value=st.integers(-(2**70), 2**70), type_=st.sampled_from(sorted(INTEGERS)))
def test_integers_fit_exactly_when_their_type_says_so(
    recorder: Recorder, type_: str, value: int
) -> None:
    """For any integer and type: either the same bytes arrive or OverflowError is raised."""
    least, most = INTEGERS[type_]
    probe = probe_of(type_)
    probe._strict = True
    recorder.attach(probe)
    if least <= value <= most:
        probe(value)
        size = BY_NAME[type_].operands[0]
        assert masked(recorder.words[0], size) == masked(value, size)
    else:
        with pytest.raises(OverflowError):
            probe(value)


def test_a_bool_is_an_integer_and_the_other_way_round(recorder: Recorder) -> None:
    """True and False fire as 1 and 0, as bool and as any integer type."""
    for type_ in INTEGERS:
        probe = probe_of(type_)
        recorder.attach(probe)
        for value in (True, False):
            probe(value)
            assert recorder.words[0] == int(value)


@pytest.mark.parametrize(
    "value",
    [0.0, -0.0, 1.5, -math.pi, 5e-324, sys.float_info.max, math.inf, -math.inf, math.nan],
)
def test_a_double_arrives_bit_for_bit(recorder: Recorder, value: float) -> None:
    """An f64 travels as its bits: signed zero, denormals, infinities and NaN too."""
    probe = probe_of("f64")
    recorder.attach(probe)
    for given_value in (value, Real(value), type("Float", (float,), {})(value)):
        probe(given_value)
        assert struct.pack("<Q", recorder.words[0]) == struct.pack("<d", value)


@pytest.mark.parametrize(
    "value", [0.0, -0.0, 1.5, 0.1, -math.pi, 1e-45, 3.4028234663852886e38, math.inf, -math.inf]
)
def test_a_float_is_rounded_to_32_bits(recorder: Recorder, value: float) -> None:
    """An f32 travels as the bits of the nearest single, in 4 bytes."""
    probe = probe_of("f32")
    recorder.attach(probe)
    probe(value)
    assert recorder.words[0] == struct.unpack("<I", struct.pack("<f", value))[0]


def test_an_f32_nan_stays_one(recorder: Recorder) -> None:
    """NaN is a value like others."""
    probe = probe_of("f32")
    recorder.attach(probe)
    probe(math.nan)
    assert math.isnan(struct.unpack("<f", struct.pack("<I", recorder.words[0]))[0])


def test_floats_take_what_float_takes_as_a_number(recorder: Recorder) -> None:
    """Ints, bools and __index__ objects fire as floats."""
    probe = probe_of("f64")
    recorder.attach(probe)
    for value, wide in ((7, 7.0), (True, 1.0), (Index(-3), -3.0), (2**53 + 1, float(2**53))):
        probe(value)
        assert struct.pack("<Q", recorder.words[0]) == struct.pack("<d", wide)


def test_many_dropped_events_do_not_flood(
    recorder: Recorder, unraisable: list[tuple[type, str]]
) -> None:
    """The first 16 are reported, then the 32nd, 64th, 128th and so on; all are counted."""
    probe = probe_of("u64")
    recorder.attach(probe)
    for _ in range(1000):
        probe(None)
    assert (len(unraisable), probe.dropped) == (16 + 5, 1000)


@pytest.mark.parametrize(
    ("type_", "value"),
    [("f32", 3.5e38), ("f32", -1e300), ("f64", 10**400), ("f32", 10**400), ("f64", -(10**400))],
)
def test_a_float_that_overflows_is_dropped(
    recorder: Recorder, unraisable: list[tuple[type, str]], type_: str, value: float
) -> None:
    """A finite number never silently becomes an infinity."""
    probe = probe_of(type_)
    recorder.attach(probe)
    probe(value)
    assert [kind for kind, _ in unraisable] == [OverflowError]
    assert (probe.dropped, recorder.calls) == (1, 0)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", b""),
        ("ada", b"ada"),
        ("Grüße, 世界 🌍", "Grüße, 世界 🌍".encode()),
        ("x" * 4000, b"x" * 4000),
        (type("Text", (str,), {})("sub\u20ac"), "sub\u20ac".encode()),
        ("caf\udce9", b"caf\xe9"),  # a file name that is not UTF-8, as os.listdir() gives it
        ("\udc80\udcff€", b"\x80\xff\xe2\x82\xac"),
    ],
    ids=["empty", "ascii", "utf8", "long", "subclass", "surrogateescape", "mixed"],
)
def test_a_string_arrives_as_utf8(recorder: Recorder, text: str, wanted: bytes) -> None:
    """The operand points at the UTF-8 text with its NUL; undecodable bytes travel as they came."""
    probe = probe_of("str")
    recorder.attach(probe, copy=1)
    probe(text)
    assert recorder.text == wanted
    probe(text)
    assert recorder.text == wanted


@pytest.mark.parametrize("text", [chr(0xD800), "a" + chr(0xDFFF), chr(0xDC7F) + "b"])
def test_a_lone_surrogate_is_reported(
    recorder: Recorder, unraisable: list[tuple[type, str]], text: str
) -> None:
    """What has no bytes in any encoding is dropped."""
    probe = probe_of("str")
    recorder.attach(probe)
    probe(text)
    assert [kind for kind, _ in unraisable] == [UnicodeEncodeError]
    assert (probe.dropped, recorder.calls) == (1, 0)


@pytest.mark.parametrize("text", ["\0", "a\0b", "tail\0", "caf\udce9\0"])
def test_a_string_with_nul_is_reported_not_cut(
    recorder: Recorder, unraisable: list[tuple[type, str]], text: str
) -> None:
    """A NUL character would end the text at the tracer, so the event is dropped with a hint."""
    probe = probe_of("str")
    recorder.attach(probe)
    probe(text)
    message = (
        "shop:event: argument 'value' has a NUL character, where a tracer would cut it: "
        "declare it bytes"
    )
    assert unraisable == [(ValueError, message)]
    assert (probe.dropped, recorder.calls) == (1, 0)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"a\0b\xff",
        bytearray(b"grows"),
        memoryview(b"view")[1:3],
        array.array("i", [1, 2, 3]),
        (ctypes.c_char * 4)(*b"cbuf"),
        bytes(range(256)) * 16,
    ],
    ids=["empty", "nul", "bytearray", "memoryview", "array", "ctypes", "4096"],
)
def test_bytes_arrive_as_pointer_and_length(recorder: Recorder, value: object) -> None:
    """Anything with a contiguous buffer fires as its bytes; NULs are bytes like others."""
    wanted = bytes(memoryview(value).cast("B")) if value else b""
    probe = probe_of("bytes")
    recorder.attach(probe, copy=2)
    probe(value)
    assert recorder.words[1] == len(wanted)
    assert recorder.bytes() == wanted


def test_a_buffer_is_given_back_after_the_call(recorder: Recorder) -> None:
    """A bytearray can be resized and a memoryview released once the probe has returned."""
    probe = probe_of("bytes")
    recorder.attach(probe)
    data = bytearray(b"abc")
    view = memoryview(data)
    probe(view)
    probe(data)
    view.release()
    data += b"more"
    with mmap.mmap(-1, 20000) as pages:
        probe(pages)
        probe(memoryview(pages)[4095:12300])
    assert recorder.calls == 4


def test_every_page_of_the_bytes_is_touched(recorder: Recorder) -> None:
    """A tracer cannot fault a page in, so the last page is resident even when one byte is on it."""
    page = mmap.PAGESIZE
    probe = probe_of("bytes")
    recorder.attach(probe)
    with mmap.mmap(-1, 5 * page) as pages:
        probe(memoryview(pages)[page - 100 : 2 * page + 10])
        with open("/proc/self/pagemap", "rb") as pagemap:
            pagemap.seek(recorder.words[0] // page * 8)
            entries = struct.unpack("<4Q", pagemap.read(32))
    assert [entry >> 63 for entry in entries] == [1, 1, 1, 0]


def test_a_view_with_gaps_is_reported(
    recorder: Recorder, unraisable: list[tuple[type, str]]
) -> None:
    """A non-contiguous buffer has no pointer and length; a released one has no buffer."""
    probe = probe_of("bytes")
    recorder.attach(probe)
    released = memoryview(b"gone")
    released.release()
    probe(memoryview(b"abcdef")[::2])
    probe(released)
    assert [kind for kind, _ in unraisable] == [BufferError, ValueError]
    assert (probe.dropped, recorder.calls) == (2, 0)


WRONG = {
    **{name: ["1", 1.0, None, b"1", [], Real(1.0), 1j] for name in INTEGERS},
    "f32": ["1.0", None, b"1", [], 1j],
    "f64": ["1.0", None, b"1", [], 1j],
    "str": [1, None, b"ada", ["ada"], 1.5],
    "bytes": ["ada", 1, None, [1, 2], 1.5],
}


@pytest.mark.parametrize("type_", BY_NAME)
def test_a_wrong_type_is_dropped(
    recorder: Recorder, unraisable: list[tuple[type, str]], type_: str
) -> None:
    """The report says which argument of which probe wants what and got what."""
    probe = probe_of(type_)
    recorder.attach(probe)
    for value in WRONG[type_]:
        assert probe(value) is None
    assert (probe.dropped, recorder.calls) == (len(WRONG[type_]), 0)
    wants = "a number" if type_ in ("f32", "f64") else type_
    assert unraisable == [
        (TypeError, f"shop:event: argument 'value' wants {wants}, got {type(value).__name__}")
        for value in WRONG[type_]
    ]


def test_every_type_has_a_wrong_value_here() -> None:
    """The tables of this file name every type there is."""
    assert set(WRONG) == set(BY_NAME)


@pytest.mark.parametrize("count", range(13))
def test_each_operand_has_its_place(recorder: Recorder, count: int) -> None:
    """0 to 12 arguments arrive in order; prime counts and signs would show a swap."""
    args = {f"a{i}": "i64" if i % 2 else "u64" for i in range(count)}
    probe = usdt.Provider("shop").add_probe("event", **args)
    recorder.attach(probe)
    values = [(-1) ** i * (2**33 + 7 * i + 1) for i in range(count)]
    probe(*values)
    assert recorder.calls == 1
    assert recorder.words[:count] == [value & (2**64 - 1) for value in values]


def test_bytes_take_two_places_among_others(recorder: Recorder) -> None:
    """Pointer and length stand where the argument stands, in registers and on the stack."""
    probe = usdt.Provider("shop").add_probe(
        "event", a=bytes, b="u8", c=bytes, d="i32", e=bytes, f=bytes, g="f32", h=bool
    )
    recorder.attach(probe)
    probe(b"1", 2, b"333", -4, b"55555", b"", 0.5, True)
    words = recorder.words
    assert [words[i] for i in (1, 2, 4, 7, 9)] == [1, 2, 3, 5, 0]
    assert masked(words[5], 4) == 2**32 - 4
    assert words[10:] == [struct.unpack("<I", struct.pack("<f", 0.5))[0], 1]


def test_six_bytes_arguments_are_the_most(recorder: Recorder) -> None:
    """All twelve operands may be pointers and lengths of buffers that are given back."""
    probe = usdt.Provider("shop").add_probe("event", **{f"a{i}": bytes for i in range(6)})
    recorder.attach(probe)
    buffers = [bytearray(i) for i in range(6)]
    probe(*buffers)
    assert recorder.words[1::2] == [0, 1, 2, 3, 4, 5]
    for buffer in buffers:
        buffer.append(1)


# --- counting and binding arguments


@pytest.fixture(params=["unloaded", "disabled", "enabled"])
def order(request: pytest.FixtureRequest, recorder: Recorder) -> usdt.Probe[...]:
    """A probe of two required arguments and one default, in each state it can be in."""
    shop = usdt.Provider("shop")

    @shop.probe
    def order(id: u64, count: u8, note: str = "none") -> None: ...

    if request.param == "disabled":
        assert shop.load()
    elif request.param == "enabled":
        recorder.attach(order)
    return order


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((), {}, "shop:order() missing required argument 'id'"),
        ((1,), {}, "shop:order() missing required argument 'count'"),
        ((1, 2, "x", 4), {}, "shop:order() takes 3 arguments but 4 were given"),
        ((1, 2, "x"), {"note": "y"}, "shop:order() got multiple values for argument 'note'"),
        ((1,), {"id": 1}, "shop:order() got multiple values for argument 'id'"),
        ((1,), {"cuont": 2}, "shop:order() got an unexpected keyword argument 'cuont'"),
        ((), {"count": 2}, "shop:order() missing required argument 'id'"),
    ],
)
@pytest.mark.parametrize("how", ["call", "fire"])
def test_a_wrong_call_raises_in_every_state(
    order: usdt.Probe[...], how: str, args: tuple[object, ...], kwargs: dict[str, object],
    message: str,
) -> None:  # fmt: skip
    """A wrong count or name raises TypeError whether or not somebody listens."""
    fire = order if how == "call" else order.fire
    with pytest.raises(TypeError) as raised:
        fire(*args, **kwargs)
    assert str(raised.value) == message
    assert order.dropped == 0


def test_keywords_and_defaults_bind_as_in_the_declaration(recorder: Recorder) -> None:
    """Positional, keyword and default arguments reach the operand that bears their name."""
    shop = usdt.Provider("shop")

    @shop.probe
    def order(id: u64, count: u8 = 7, ns: u64 = 9) -> None: ...

    recorder.attach(order)
    for call, wanted in (
        (lambda: order(1), [1, 7, 9]),
        (lambda: order(1, ns=2), [1, 7, 2]),
        (lambda: order(count=3, id=4), [4, 3, 9]),
        (lambda: order(ns=5, count=6, id=8), [8, 6, 5]),
        (lambda: order.fire(1, 2), [1, 2, 9]),
        (lambda: order.fire(1, ns=3), [1, 7, 3]),
        (lambda: order(*(1,), count=2), [1, 2, 9]),
        (lambda: functools.partial(order, 1, 2)(ns=3), [1, 2, 3]),
        (lambda: list(map(order, [1], [2], [3])), [1, 2, 3]),
    ):
        call()
        assert recorder.words[:3] == wanted
    assert recorder.calls == 9


def test_lazy_needs_every_value(recorder: Recorder) -> None:
    """lazy() takes the whole tuple: defaults are for calls."""
    shop = usdt.Provider("shop")

    @shop.probe
    def order(id: u64, count: u8 = 7) -> None: ...

    usdt.strict()
    recorder.attach(order)
    order.lazy(lambda: (1, 2))
    with pytest.raises(TypeError, match=r"must return a tuple of 2 values"):
        order.lazy(lambda: (1,))
    assert recorder.words[:2] == [1, 2]


# --- values that do not fit, strictness


def test_nothing_is_converted_while_nobody_listens(
    unraisable: list[tuple[type, str]], shop: usdt.Provider
) -> None:
    """A disabled probe does not look at its values."""

    class Bomb:
        def __index__(self) -> int:
            raise AssertionError("converted")

    probe = shop.add_probe("event", value=u64)
    assert shop.load()
    probe(Bomb())
    probe("wrong")
    probe(value=-1)
    assert (unraisable, probe.dropped) == ([], 0)


@pytest.mark.parametrize("state", ["unloaded", "disabled", "enabled"])
def test_strict_raises_in_every_state(recorder: Recorder, state: str) -> None:
    """usdt.strict() makes a value that does not fit raise, listened to or not, and off again."""
    shop = usdt.Provider("shop")
    before = shop.add_probe("before", value=u8)
    usdt.strict()
    after = shop.add_probe("after", value=u8)
    for probe in (before, after):
        if state == "enabled":
            recorder.attach(probe)
    if state == "disabled":
        shop.load()
    for probe in (before, after):
        with pytest.raises(OverflowError):
            probe(256)
        with pytest.raises(TypeError):
            probe.fire("1")
        with pytest.raises(OverflowError):
            probe.lazy(lambda: (256,))
        assert probe.dropped == 0
        assert probe(255) is None
    usdt.strict(False)
    if state != "enabled":
        before(256)
        after.lazy(lambda: 1 / 0)


def test_an_error_in_a_conversion_is_reported(
    recorder: Recorder, unraisable: list[tuple[type, str]]
) -> None:
    """Whatever a value's own conversion raises is dropped and reported as it is."""

    class Broken:
        def __index__(self) -> int:
            raise LookupError("no number today")

        def __float__(self) -> float:
            raise LookupError("no float today")

    for type_ in ("u64", "f64"):
        probe = probe_of(type_)
        recorder.attach(probe)
        assert probe(Broken()) is None
        assert probe.dropped == 1
    assert unraisable == [(LookupError, "no number today"), (LookupError, "no float today")]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_ends_a_program_is_not_swallowed(
    recorder: Recorder, unraisable: list[tuple[type, str]], kind: type[BaseException]
) -> None:
    """KeyboardInterrupt and the like pass through a conversion and a lazy callable."""

    class Interrupted:
        def __index__(self) -> int:
            raise kind

    def interrupted() -> tuple[int]:
        raise kind

    probe = probe_of("u64")
    recorder.attach(probe)
    with pytest.raises(kind):
        probe(Interrupted())
    with pytest.raises(kind):
        probe.lazy(interrupted)
    assert (unraisable, probe.dropped) == ([], 0)


def test_a_hook_that_raises_changes_nothing(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The program goes on when sys.unraisablehook is broken; CPython prints both errors."""

    def hook(args: object) -> None:
        raise RuntimeError("the hook is broken")

    monkeypatch.setattr(sys, "unraisablehook", hook)
    probe = probe_of("u8")
    recorder.attach(probe)
    assert probe(256) is None
    assert probe.dropped == 1
    assert "the hook is broken" in capfd.readouterr().err


def test_the_report_names_the_probe(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """sys.unraisablehook gets the probe itself, so that the default one prints its name."""
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: seen.append(args.object))
    probe = probe_of("u8")
    recorder.attach(probe)
    probe(256)
    assert seen == [probe]


def test_an_event_is_dropped_whole(recorder: Recorder, unraisable: list[tuple[type, str]]) -> None:
    """One bad value among good ones drops the event and gives the buffers back."""
    probe = usdt.Provider("shop").add_probe("event", a=bytes, b=str, c=u8)
    recorder.attach(probe)
    data = bytearray(b"abc")
    probe(data, "caf\udce9", 256)
    data.append(0)
    assert (len(unraisable), probe.dropped, recorder.calls) == (1, 1, 0)


# --- lazy


def test_lazy_is_evaluated_only_for_a_listener(recorder: Recorder, shop: usdt.Provider) -> None:
    """The callable runs once for an event somebody hears, and never otherwise."""
    probe = shop.add_probe("event", id=u64, count=u8)
    ran = []

    def values() -> tuple[int, int]:
        ran.append(1)
        return 42, 7

    shop.load()
    assert probe.lazy(values) is None
    assert ran == []
    recorder.attach(probe)
    assert probe.lazy(values) is None
    assert (len(ran), recorder.words[:2]) == (1, [42, 7])


@pytest.mark.parametrize(
    "wrong", [None, (), (1,), (1, 2, 3), [1, 2], {1: 2, 2: 3}, "ab", iter((1, 2))]
)
def test_lazy_reports_anything_but_the_tuple(
    recorder: Recorder, unraisable: list[tuple[type, str]], wrong: object
) -> None:
    """What the callable returns is looked at only for a listener, so it does not raise."""
    probe = usdt.Provider("shop").add_probe("event", id=u64, count=u8)
    recorder.attach(probe)
    assert probe.lazy(lambda: wrong) is None
    message = "shop:event: the function given to lazy() must return a tuple of 2 values"
    assert unraisable == [(TypeError, message)]
    assert (probe.dropped, recorder.calls) == (1, 0)


def test_lazy_reports_a_callable_that_raises(
    recorder: Recorder, unraisable: list[tuple[type, str]]
) -> None:
    """An error in the callable, or something that is no callable, drops the event."""
    probe = probe_of("u64")
    recorder.attach(probe)
    probe.lazy(lambda: 1 // 0)
    probe.lazy(3)
    assert [kind for kind, _ in unraisable] == [ZeroDivisionError, TypeError]
    assert probe.dropped == 2
    probe._strict = True
    with pytest.raises(ZeroDivisionError):
        probe.lazy(lambda: 1 // 0)


def test_lazy_takes_one_callable() -> None:
    """lazy() itself checks its count in every state."""
    probe = probe_of("u64")
    for call in (lambda: probe.lazy(), lambda: probe.lazy(len, len)):
        with pytest.raises(TypeError):
            call()


# --- what a probe is


def test_the_truth_value_says_whether_somebody_listens(
    recorder: Recorder, shop: usdt.Provider
) -> None:
    """bool(probe) and .enabled are one; .loaded is another thing."""
    probe = shop.add_probe("event")
    assert (bool(probe), probe.enabled, probe.loaded) == (False, False, False)
    shop.load()
    assert (bool(probe), probe.enabled, probe.loaded) == (False, False, True)
    recorder.attach(probe)
    assert (bool(probe), probe.enabled, probe.loaded) == (True, True, True)
    shop.unload()
    assert (bool(probe), probe.enabled, probe.loaded) == (False, False, False)


def test_strict_and_forgotten_are_not_listeners(shop: usdt.Provider) -> None:
    """The checks of strict mode, and the warning still due, enable nothing."""
    usdt.strict()
    probe = shop.add_probe("event")
    assert not probe
    shop.load()
    assert not probe


def test_a_probe_shows_itself(shop: usdt.Provider) -> None:
    """repr() has the name that tracers know and whether they see it."""
    probe = shop.add_probe("event")
    assert repr(probe) == "<usdt.Probe shop:event, not loaded>"
    shop.load()
    assert repr(probe) == "<usdt.Probe shop:event>"


def test_a_decorated_probe_looks_like_its_function(shop: usdt.Provider) -> None:
    """Name, module, docstring, signature and source lead to the declaration."""

    def order_done(id: u64, status: u8 = 3) -> None:
        """An order is done."""

    probe = shop.probe(order_done)
    assert probe.__name__ == "order_done"
    assert probe.__qualname__ == order_done.__qualname__
    assert probe.__module__ == __name__
    assert probe.__doc__ == "An order is done."
    assert probe.__wrapped__ is order_done
    assert inspect.signature(probe) == inspect.signature(order_done)
    assert inspect.unwrap(probe) is order_done
    assert "An order is done." in inspect.getsource(inspect.unwrap(probe))
    assert callable(probe)
    assert functools.wraps(probe)(lambda: None).__name__ == "order_done"


def test_a_probe_knows_its_provider_and_description(shop: usdt.Provider) -> None:
    """.provider and .spec are what declared it; neither can be replaced."""
    probe = shop.add_probe("event", id=u64)
    assert probe.provider is shop
    assert str(probe.spec) == "event(u64 id)"
    for attribute in ("provider", "spec", "dropped", "enabled", "loaded"):
        with pytest.raises(AttributeError):
            setattr(probe, attribute, None)


def test_a_probe_takes_weak_references_and_attributes() -> None:
    """Frameworks hang things on callables and watch them go."""
    shop = usdt.Provider("shop")
    probe = shop.add_probe("event")
    probe.owner = "checkout"
    gone = []
    reference = weakref.ref(probe, gone.append)
    assert reference() is probe
    assert hash(probe) == hash(probe)
    assert probe == probe
    assert {probe: 1}[probe] == 1


def test_a_probe_can_be_subscripted_for_annotations() -> None:
    """Probe[...] works at run time, as annotations that are evaluated need it."""
    assert usdt.Probe[...].__origin__ is usdt.Probe
    assert usdt.Probe[[int, str]].__args__ == ([int, str],)


def test_a_probe_is_neither_copied_nor_pickled(shop: usdt.Provider) -> None:
    """A second object for one probe would fire nowhere: TypeError says no."""
    probe = shop.add_probe("event")
    for call in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="pickle"):
            call(probe)


def test_probes_are_not_subclassed() -> None:
    """The fire path is final."""
    with pytest.raises(TypeError):
        type("Sub", (usdt.Probe,), {})


def test_a_probe_is_not_a_method(shop: usdt.Provider) -> None:
    """As a class attribute it gets the arguments it is given, without self."""
    events = []
    probe = shop.add_probe("event", id=u64)
    probe._listener = lambda _, values: events.append(values)
    service = type("Service", (), {"event": probe})()
    service.event(7)
    assert events == [(7,)]


@pytest.mark.parametrize(
    ("names", "codes", "defaults"),
    [
        (("a",), "", ()),
        ((), "Q", ()),
        (("a",), "Z", ()),
        (("a",), "\0", ()),
        (("a",), "Q", (1, 2)),
        (tuple("abcdefghijklm"), "Q" * 13, ()),
        (tuple("abcdefg"), "y" * 7, ()),
        (tuple("abcdefghijkl"), "y" * 12, ()),
    ],
)
def test_a_probe_is_not_made_of_nonsense(
    names: tuple[str, ...], codes: str, defaults: tuple[int, ...]
) -> None:
    """The C type checks what would otherwise overrun its tables."""
    with pytest.raises(ValueError, match="do not describe a probe"):
        usdt.Probe(None, None, "shop:event", names, codes, defaults)


def test_a_probe_is_attached_to_symbols_that_exist(recorder: Recorder) -> None:
    """A stub without the symbols leaves the probe as it was."""
    probe = probe_of("u64")
    for function, semaphore in (("missing", "on"), ("record", "missing")):
        with pytest.raises(LookupError, match="the stub lacks missing"):
            probe._attach(recorder.stub, function, semaphore)
    with pytest.raises(TypeError):
        probe._attach(object(), "record", "on")
    assert not probe.loaded
