# SPDX-License-Identifier: MIT
"""A provider: what declares a probe and what is refused, load, unload, and what it says.

Where stubs lie is test_stubfile's business, what a probe does with a value test_probe's.
"""

from __future__ import annotations

import logging
import os
import pathlib
import types
from collections.abc import Callable

import pytest
from forced import force, mappings

import stubgen
import usdt
from stubgen.argtypes import BY_NAME
from usdt import _nop, i32, u64

PREAMBLE = """
import usdt
import usdt as tracing
from usdt import *
from usdt import u64 as U, f32 as Single
Text = str
shop = usdt.Provider("shop")
"""


def declared(declaration: str, *, postponed: bool = False) -> usdt.Probe[...]:
    """The probe `order` that source text declares, with evaluated or postponed annotations."""
    future = "from __future__ import annotations\n" if postponed else ""
    source = f"{future}{PREAMBLE}\n@shop.probe\n{declaration}\n"
    namespace: dict[str, object] = {}
    exec(compile(source, "declaration", "exec", dont_inherit=True), namespace)
    probe = namespace["order"]
    assert isinstance(probe, usdt.Probe)
    return probe


# --- declaring


@pytest.mark.parametrize("postponed", [False, True], ids=["evaluated", "postponed"])
@pytest.mark.parametrize(
    ("declaration", "spec"),
    [
        ("def order() -> None: ...", "order()"),
        ("def order(id: u64) -> None: ...", "order(u64 id)"),
        ("def order(id: U, x: Single) -> None: ...", "order(u64 id, f32 x)"),
        ("def order(id: usdt.u64, x: tracing.i8) -> None: ...", "order(u64 id, i8 x)"),
        ("def order(id: 'u64', x: 'str') -> None: ...", "order(u64 id, str x)"),
        (
            "def order(a: int, b: float, c: str, d: bytes, e: bool) -> None: ...",
            "order(i64 a, f64 b, str c, bytes d, bool e)",
        ),
        ("def order(a: Text, b: ptr) -> None: ...", "order(str a, ptr b)"),
        ("def order(a: u8, /, b: u16 = 3) -> None: ...", "order(u8 a, u16 b)"),
        ("def order(self: u8, name: str, spec: u8): pass", "order(u8 self, str name, u8 spec)"),
        ("def order(_: u8, __x1: i16): raise RuntimeError", "order(u8 _, i16 __x1)"),
    ],
)  # fmt: skip
def test_the_signature_is_the_declaration(declaration: str, spec: str, postponed: bool) -> None:
    """Annotations name types: of the package, dotted, aliased, quoted, builtin, postponed."""
    assert str(declared(declaration, postponed=postponed).spec) == spec


def test_every_type_is_exported_and_declares_itself() -> None:
    """What `usdt` exports under a type's name is that type; names work in add_probe too."""
    for name, row in BY_NAME.items():
        assert usdt.Provider("shop").add_probe("event", a=name).spec.args[0].type is row
        if name not in ("str", "bytes", "bool"):
            assert getattr(usdt, name) is row


@pytest.mark.parametrize("postponed", [False, True], ids=["evaluated", "postponed"])
@pytest.mark.parametrize(
    ("declaration", "message"),
    [
        ("def order(id): ...", "argument 'id' of probe 'order' has no type: annotate it, as in "
         "`id: u64`"),
        ("def order(self, id: u64): ...", "argument 'self' of probe 'order' has no type: annotate "
         "it, as in `self: u64` (declare probes at module level, not in a class)"),
        ("def order(*ids: u64): ...", "probe 'order' takes a fixed list of arguments: no *args, "
         "**kwargs or keyword-only ones"),
        ("def order(**ids: u64): ...", "fixed list of arguments"),
        ("def order(*, id: u64): ...", "fixed list of arguments"),
        ("async def order(id: u64): ...", "is declared by a plain `def`"),
        ("def order(id: u64): yield", "is declared by a plain `def`"),
        ("async def order(id: u64): yield", "is declared by a plain `def`"),
        ("def order(id: list): ...", "argument 'id' has type 'list': use one of i8, i16"),
        ("def order(id: usdt.Provider): ...", "has type 'Provider': use one of"),
        ("def order(id: None): ...", "has type None: use one of"),
        ("def order(id: 3): ...", "has type 3: use one of"),
        ("class order: ...", "is not a function: decorate a `def`, or use add_probe()"),
        ("@staticmethod\ndef order(id: u64): ...", "is not a function"),
        ("def größe(id: u64): ...", "probe name 'größe' is not a C identifier"),
        ("def order(größe: u64): ...", "argument name 'größe' is not a C identifier"),
        ("def order(a: bytes, b: bytes, c: bytes, d: bytes, e: bytes, f: bytes, g: u8): ...",
         "probe 'order' needs 13 operands"),
        ("def order(a: u8, b: u8, c: u8, d: u8, e: u8, f: u8, g: u8, h: u8, i: u8, j: u8, k: u8, "
         "l: u8, m: u8): ...", "probe 'order' needs 13 operands"),
    ],
)  # fmt: skip
def test_a_declaration_that_is_none_is_refused(
    declaration: str, message: str, postponed: bool
) -> None:
    """One line of SpecError says what to write instead."""
    with pytest.raises(usdt.SpecError) as raised:
        declared(declaration, postponed=postponed)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("annotation", ["u65", "u64 | None", "list[u64]", "usdt.u65", "1 +"])
def test_a_postponed_annotation_that_means_nothing_is_refused(annotation: str) -> None:
    """What cannot be evaluated, or evaluates to no type, is a SpecError and no other."""
    with pytest.raises(usdt.SpecError, match="argument 'id' has type"):
        declared(f"def order(id: '{annotation}'): ...")


@pytest.mark.parametrize("thing", [len, print, 3, None, object(), lambda: None, usdt.Provider])
def test_what_is_no_def_is_refused(shop: usdt.Provider, thing: Callable[..., None]) -> None:
    """Builtins, values, classes and lambdas declare nothing."""
    with pytest.raises(usdt.SpecError):
        shop.probe(thing)
    assert shop.probes == ()


def test_the_body_never_runs(shop: usdt.Provider) -> None:
    """A declaration's body is documentation."""

    @shop.probe
    def order(id: u64) -> None:
        raise AssertionError("ran")

    assert order(1) is None
    shop.load()
    force(order)
    assert order(1) is None


@pytest.mark.parametrize(
    "name", ["", "9lives", "a-b", "a b", "a.b", "a:b", "ä", "a\n", "a\0", "x" * 101, 3, None, b"a"]
)
def test_names_are_c_identifiers(shop: usdt.Provider, name: str) -> None:
    """Provider, probe and argument names that tracers could not spell are refused."""
    with pytest.raises(usdt.SpecError):
        usdt.Provider(name)
    with pytest.raises(usdt.SpecError):
        shop.add_probe(name)
    if isinstance(name, str):
        with pytest.raises(usdt.SpecError):
            shop.add_probe("event", **{name: u64})
    assert shop.probes == ()


def test_the_longest_names_load(shop: usdt.Provider) -> None:
    """100 characters are allowed everywhere, and make a stub that loads and fires."""
    provider = usdt.Provider("p" * 100)
    probe = provider.add_probe("q" * 100, **{"r" * 100: u64})
    assert provider.load()
    force(probe)
    probe(1)


def test_a_probe_is_declared_once(shop: usdt.Provider) -> None:
    """A second probe of a name is refused, however it is declared; the first one stays."""
    first = shop.add_probe("order")
    with pytest.raises(usdt.SpecError, match="already has a probe 'order': rename one"):
        shop.add_probe("order", id=u64)

    def order(id: u64) -> None: ...

    with pytest.raises(usdt.SpecError, match="already has a probe 'order'"):
        shop.probe(order)
    assert shop.probes == (first,)


def test_add_probe_takes_any_argument_name(shop: usdt.Provider) -> None:
    """`name` and `self` are positional-only, so arguments may have these names."""
    probe = shop.add_probe("order", name=str, self=u64, args=bool)
    assert str(probe.spec) == "order(str name, u64 self, bool args)"
    with pytest.raises(TypeError):
        shop.add_probe(name="order")


@pytest.mark.parametrize("given", ["u65", "U64", "", list, None, 8, usdt.Provider, object()])
def test_add_probe_refuses_other_types(shop: usdt.Provider, given: str) -> None:
    """What is no row of the table is refused with the list of those that are."""
    with pytest.raises(usdt.SpecError, match=r"argument 'id' has type .*: use one of i8"):
        shop.add_probe("order", id=given)


@pytest.mark.parametrize("nop", ["nop2", "", "NOP1", 1])
def test_an_unknown_nop_kind_is_refused(nop: str) -> None:
    """The nop kinds there are, are named."""
    with pytest.raises(usdt.SpecError, match=r"no nop kind .*: use one of .*nop1"):
        usdt.Provider("shop", nop=nop)


def test_spec_is_what_stubgen_takes(shop: usdt.Provider) -> None:
    """The description holds the probes in order of declaration and builds."""
    shop.add_probe("zeta", b=u64)
    shop.add_probe("alpha", a=str)
    assert [probe.name for probe in shop.spec.probes] == ["zeta", "alpha"]
    assert shop.name == shop.spec.name == "shop"
    assert stubgen.build(shop.spec).startswith(b"\x7fELF")


# --- load and unload


def test_load_makes_one_stub_for_all_probes(shop: usdt.Provider, stub_dir: pathlib.Path) -> None:
    """The stub is a file in the directory; why_not says what to do before, nothing after."""
    one, two = shop.add_probe("one", a=u64), shop.add_probe("two")
    assert shop.why_not == "call load() to make the probes of 'shop' visible"
    assert (shop.paths, repr(shop)) == ((), "<usdt.Provider shop, 2 probes, not loaded>")
    assert shop.load() is True
    assert shop.paths == tuple(map(str, stub_dir.iterdir()))
    assert (one.loaded, two.loaded, shop.why_not) == (True, True, None)
    assert repr(shop) == "<usdt.Provider shop, 2 probes, loaded>"
    assert len({line.split()[5] for line in mappings(shop.paths[0])}) == 1


def test_load_again_changes_nothing(shop: usdt.Provider) -> None:
    """A second load with nothing new keeps the stub."""
    shop.add_probe("one")
    shop.load()
    paths = shop.paths
    assert shop.load() is True
    assert shop.paths == paths
    assert len(mappings(paths[0])) == len(set(mappings(paths[0])))


def test_load_without_probes_is_fine(shop: usdt.Provider, stub_dir: pathlib.Path) -> None:
    """There is nothing to make visible, and nothing to say."""
    assert shop.load() is True
    assert (shop.paths, shop.why_not, list(stub_dir.iterdir())) == ((), None, [])


def test_probes_declared_later_get_a_stub_of_their_own(shop: usdt.Provider) -> None:
    """load() after a new declaration adds a stub; the first one stays where it is."""
    one = shop.add_probe("one", a=u64)
    shop.load()
    first = shop.paths
    semaphore = force(one)
    two = shop.add_probe("two")
    assert not two.loaded
    assert shop.why_not == "call load() to make the probes of 'shop' visible"
    shop.load()
    assert shop.paths[:1] == first
    assert len(shop.paths) == 2
    assert two.loaded
    assert one
    assert not two
    semaphore.value = 0
    force(two)
    assert two
    assert not one


def test_unload_takes_every_stub_away(shop: usdt.Provider) -> None:
    """After unload() nothing is mapped, nothing fires, and load() starts over with one stub."""
    one = shop.add_probe("one")
    shop.load()
    two = shop.add_probe("two")
    shop.load()
    paths = shop.paths
    force(one)
    force(two)
    shop.unload()
    assert (shop.paths, one.loaded, bool(one), bool(two)) == ((), False, False, False)
    assert [mappings(path) for path in paths] == [[], []]
    assert (one(), two()) == (None, None)
    shop.unload()
    shop.load()
    assert len(shop.paths) == 1
    assert shop.paths[0] not in paths


def test_a_provider_is_a_context_manager(shop: usdt.Provider) -> None:
    """Loaded inside the block, unloaded after it, also when the block raises."""
    probe = shop.add_probe("event")
    with shop as entered:
        assert entered is shop
        assert probe.loaded
    assert not probe.loaded
    with pytest.raises(ZeroDivisionError), shop:
        1 // 0  # noqa: B018
    assert not probe.loaded


def test_equal_providers_share_one_stub() -> None:
    """Two Provider objects of one description map one file, and one semaphore enables both."""
    one, two = usdt.Provider("shop"), usdt.Provider("shop")
    first, second = one.add_probe("event", a=u64), two.add_probe("event", a=u64)
    one.load()
    two.load()
    assert one.paths == two.paths
    force(first)
    assert second
    one.unload()
    assert second
    assert not first


def test_loading_gives_all_of_a_hundred_probes_their_own_semaphore(shop: usdt.Provider) -> None:
    """No probe listens to another's semaphore."""
    probes = [shop.add_probe(f"event_{i}", a=i32) for i in range(100)]
    shop.load()
    for probe in probes:
        semaphore = force(probe)
        assert [p for p in probes if p] == [probe]
        semaphore.value = 0


@pytest.mark.parametrize("value", [1, 2, 255, 256, 65535])
def test_any_semaphore_but_zero_listens(shop: usdt.Provider, value: int) -> None:
    """The kernel counts references in 16 bits; each of them is somebody."""
    probe = shop.add_probe("event")
    shop.load()
    semaphore = force(probe, value)
    assert probe
    semaphore.value = 0
    assert not probe


# --- what it says


FORGOTTEN = "a probe of provider 'shop' was fired while not loaded: call load() first"


def warnings(caplog: pytest.LogCaptureFixture) -> list[tuple[str, int, str]]:
    """What was logged so far, and from now on anew."""
    seen = list(caplog.record_tuples)
    caplog.clear()
    return seen


@pytest.mark.parametrize(
    "fire",
    [
        lambda probe: probe(1),
        lambda probe: probe.fire(1),
        lambda probe: probe(value=1),
        lambda probe: probe.lazy(lambda: (1,)),
        lambda probe: probe("wrong"),
    ],
    ids=["call", "fire", "keyword", "lazy", "wrong value"],
)
def test_firing_unloaded_warns_once_a_provider(
    shop: usdt.Provider, caplog: pytest.LogCaptureFixture, fire: Callable[..., object]
) -> None:
    """The first fire of any probe logs one WARNING line; the rest is silence."""
    one, two = shop.add_probe("one", value=u64), shop.add_probe("two", value=u64)
    assert fire(one) is None
    assert warnings(caplog) == [("usdt", logging.WARNING, FORGOTTEN)]
    fire(one)
    fire(two)
    assert warnings(caplog) == []


def test_a_log_handler_that_fails_does_not_fail_the_call(
    shop: usdt.Provider, unraisable: list[tuple[type, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program's logging is not the probe's caller's business."""

    def refuse(record: logging.LogRecord) -> bool:
        raise OSError("log server is gone")

    monkeypatch.setattr(logging.getLogger("usdt"), "filters", [refuse])
    probe = shop.add_probe("event")
    assert probe() is None
    assert unraisable == [(OSError, "log server is gone")]
    assert probe.dropped == 0


def test_asking_does_not_warn(shop: usdt.Provider, caplog: pytest.LogCaptureFixture) -> None:
    """The truth value of an unloaded probe is False and nothing more."""
    probe = shop.add_probe("event")
    assert not probe
    assert not probe.enabled
    with pytest.raises(TypeError):
        probe(1)
    assert warnings(caplog) == []


def test_firing_after_unload_warns_once_more(
    shop: usdt.Provider, caplog: pytest.LogCaptureFixture
) -> None:
    """Each unload() makes the next fire worth a line."""
    probe = shop.add_probe("event")
    shop.load()
    probe()
    assert warnings(caplog) == []
    for _ in range(2):
        shop.unload()
        probe()
        probe()
        assert warnings(caplog) == [("usdt", logging.WARNING, FORGOTTEN)]
        shop.load()


def test_a_loaded_probe_never_warns(shop: usdt.Provider, caplog: pytest.LogCaptureFixture) -> None:
    """A probe declared after load() does, though its siblings are loaded."""
    one = shop.add_probe("one")
    shop.load()
    two = shop.add_probe("two")
    one()
    assert warnings(caplog) == []
    two()
    assert warnings(caplog) == [("usdt", logging.WARNING, FORGOTTEN)]


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a place for stubs."""
    monkeypatch.setenv("USDT_NO_RUNTIME_STUBS", "1")


@pytest.mark.usefixtures("nowhere")
def test_a_load_that_fails_is_a_value_with_a_reason(
    shop: usdt.Provider, caplog: pytest.LogCaptureFixture
) -> None:
    """load() returns False, why_not and one WARNING say why; firing then is silent."""
    probe = shop.add_probe("event", value=u64)
    assert shop.load() is False
    assert "has no place for its stub" in shop.why_not
    assert shop.why_not.endswith(": run `usdt doctor`")
    assert warnings(caplog) == [("usdt", logging.WARNING, shop.why_not)]
    probe(1)
    probe.lazy(lambda: (1,))
    assert (warnings(caplog), probe.loaded, bool(probe)) == ([], False, False)


@pytest.mark.usefixtures("nowhere")
def test_a_strict_program_hears_of_a_failed_load(shop: usdt.Provider) -> None:
    """usdt.strict() makes load() raise LoadError, with the reason that why_not has."""
    shop.add_probe("event")
    usdt.strict()
    with pytest.raises(usdt.LoadError, match="run `usdt doctor`") as raised:
        shop.load()
    assert str(raised.value) == shop.why_not


def test_a_failed_load_can_be_tried_again(
    shop: usdt.Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the machine is mended, load() succeeds and the reason is gone."""
    probe = shop.add_probe("event")
    with monkeypatch.context() as patch:
        patch.setenv("USDT_NO_RUNTIME_STUBS", "1")
        assert not shop.load()
    assert shop.load()
    assert (probe.loaded, shop.why_not) == (True, None)


def test_a_platform_without_stubs_is_a_reason(
    shop: usdt.Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unknown machine or system fails like any other load: False and a line."""
    shop.add_probe("event")
    monkeypatch.setattr(os, "uname", lambda: types.SimpleNamespace(machine="riscv64"))
    assert not shop.load()
    assert shop.why_not.startswith("no stubs for linux on riscv64")


def test_a_nop_kind_of_another_machine_is_a_reason(shop: usdt.Provider) -> None:
    """`nop5` on aarch64, or the other way round, is said at load."""
    machine = os.uname().machine
    others = {
        kind
        for name, row in stubgen.image.MACHINES.items()
        for kind in row.nops
        if kind not in stubgen.image.MACHINES[machine].nops
    }
    for kind in others:
        provider = usdt.Provider("shop", nop=kind)
        provider.add_probe("event")
        assert not provider.load()
        assert provider.why_not.startswith(f"no nop kind '{kind}' on {machine}")


@pytest.mark.parametrize("nop", sorted(stubgen.image.MACHINES[os.uname().machine].nops))
def test_each_nop_kind_of_this_machine_loads_and_fires(nop: str) -> None:
    """The kind insisted on is used, and has a path of its own."""
    provider = usdt.Provider("shop", nop=nop)
    probe = provider.add_probe("event", **{f"a{i}": u64 for i in range(12)})
    assert provider.load()
    image = pathlib.Path(provider.paths[0]).read_bytes()
    assert image == stubgen.build(provider.spec, arch=os.uname().machine, nop=nop)
    force(probe)
    probe(*range(12))


def test_the_fastest_nop_kind_is_this_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """`nop="fastest"` takes what usdt._nop says; without it the kernel is not asked."""
    machine = os.uname().machine
    for kind in stubgen.image.MACHINES[machine].nops:
        monkeypatch.setattr(_nop, "fastest", lambda kind=kind: (kind, "said so"))
        provider = usdt.Provider("shop", nop="fastest")
        provider.add_probe("event")
        assert provider.load()
        image = stubgen.build(provider.spec, arch=machine, nop=kind)
        assert pathlib.Path(provider.paths[0]).read_bytes() == image
    monkeypatch.delattr(_nop, "fastest")
    provider = usdt.Provider("shop")
    provider.add_probe("event")
    assert provider.load()


@pytest.mark.parametrize("stubs", ["missing", "with\0nul", "relative/stubs", "/dev/null"])
def test_a_directory_of_stubs_that_is_none_is_ignored(stubs: str) -> None:
    """The program makes its own stub, and no call raises."""
    provider = usdt.Provider("shop", stubs=stubs)
    provider.add_probe("event")
    assert provider.load()


def test_load_does_not_need_a_working_directory(python: Callable[..., str]) -> None:
    """Relative directories of stubs are left out where nothing can be relative."""
    program = """
import os, tempfile
import usdt
gone = tempfile.mkdtemp()
os.chdir(gone)
os.rmdir(gone)
os.environ["USDT_STUB_PATH"] = "relative"
shop = usdt.Provider("shop", stubs="stubs")
shop.add_probe("event")
assert shop.load(), shop.why_not
"""
    python(program)
