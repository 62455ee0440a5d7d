# SPDX-License-Identifier: MIT
"""Provider: declare probes, make them visible to tracers, take them away again.

Turns Python declarations into a stubgen description and keeps the state around it; bytes,
files and the fire path belong to stubgen, stubfile and _probe.
"""

from __future__ import annotations

import os
import sys
from weakref import ref

import stubgen
from stubgen.arch import MACHINES
from stubgen.argtypes import BY_ANNOTATION, BY_NAME, ArgType
from stubgen.spec import SpecError
from stubgen.stapsdt import function_symbol, semaphore_symbol
from usdt._probe import Probe
from usdt.stubfile import LoadError, open_stub

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, ParamSpec

    from usdt._probe import Stub

    P = ParamSpec("P")

__all__ = ["Provider", "strict"]

# Include/cpython/code.h; `inspect` would cost a service 12 ms.
_CO_VARARGS, _CO_VARKEYWORDS = 0x04, 0x08
_CO_GENERATOR, _CO_COROUTINE, _CO_ASYNC_GENERATOR = 0x20, 0x80, 0x200

# A dict and not a WeakSet: it is copied in one step while other threads make providers.
_providers: dict[int, ref[Provider]] = {}
_strict = False
_listener: Callable[[Probe[...], tuple[Any, ...]], None] | None = None


def strict(on: bool = True) -> None:
    """Make a value that does not fit raise, traced or not; for tests and development.

    Otherwise such an event is dropped, counted in `Probe.dropped` and reported through
    `sys.unraisablehook`, and only while somebody listens. Holds for all probes, later ones too.
    """
    global _strict
    _strict = on
    for probe in _all_probes():
        probe._strict = on


def listen(listener: Callable[[Probe[...], tuple[Any, ...]], None] | None) -> None:
    """Hand every event of this process to `listener` as well; None ends it."""
    global _listener
    _listener = listener
    for probe in _all_probes():
        probe._listener = listener


def _all_probes() -> list[Probe[...]]:
    alive = [reference() for reference in list(_providers.values())]
    return [probe for provider in alive if provider is not None for probe in provider.probes]


class Provider:
    """A named set of probes, declared here and loaded as one stub.

    name:   what tracers call it; a C identifier
    stubs:  a directory with stubs made ahead by `usdt-stubgen build`; also looked for in
            $USDT_STUB_PATH and in `stubs/` beside the module that makes the provider
    nop:    the kind of instruction at the sites: 'nop1' (the default; safe everywhere), 'nop5', or
            'fastest' for the one this kernel traces fastest. N.B. Linux 6.18 kills a forked child
            of a traced program at its first event of a nop5 site: for programs that do not fork.

    Use as a context manager to load on entry and unload on exit. Raises SpecError.
    """

    def __init__(
        self, name: str, *, stubs: str | os.PathLike[str] | None = None, nop: str | None = None
    ) -> None:
        kinds = sorted({kind for machine in MACHINES.values() for kind in machine.nops})
        if nop not in (None, "fastest", *kinds):
            raise SpecError(f"no nop kind {nop!r}: use one of fastest, {', '.join(kinds)}")
        self._description = stubgen.Provider(name)
        self._nop = nop
        self._probes: dict[str, Probe[...]] = {}
        self._stubs: list[tuple[Stub, str]] = []
        self._why_not: str | None = None
        module = sys._getframe(1).f_globals.get("__file__")
        beside = os.path.join(os.path.dirname(module), "stubs") if module else None
        self._built = [os.fspath(path) for path in (stubs, beside) if path]
        key = id(self)
        _providers[key] = ref(self, lambda _: _providers.pop(key, None))

    @property
    def name(self) -> str:
        return self._description.name

    @property
    def spec(self) -> stubgen.Provider:
        """The description of all probes declared so far, as `stubgen` takes it."""
        probes = tuple(probe.spec for probe in self.probes)
        return stubgen.Provider(self.name, probes)

    @property
    def probes(self) -> tuple[Probe[...], ...]:
        """The probes in order of declaration."""
        # A copy, made without running Python code: other threads may be declaring.
        return tuple(self._probes.values())

    @property
    def paths(self) -> tuple[str, ...]:
        """The stub files in use: what to give to a tracer. Empty while not loaded."""
        return tuple(dict.fromkeys(path for _, path in self._stubs))

    @property
    def why_not(self) -> str | None:
        """Why tracers do not see the probes, with what to do about it; None if they do."""
        if self._why_not is None and any(not probe.loaded for probe in self.probes):
            return f"call load() to make the probes of {self.name!r} visible"
        return self._why_not

    def __repr__(self) -> str:
        state = "loaded" if self._stubs else "not loaded"
        count = len(self._probes)
        return f"<usdt.Provider {self.name}, {count} probe{'s' * (count != 1)}, {state}>"

    # --- declaring

    def probe(self, function: Callable[P, None]) -> Probe[P]:
        """Decorator: the function's name and parameters declare a probe; its body never runs.

        Every parameter needs an annotation: a type of this package (usdt.u64, ...) or int, float,
        str, bytes or bool, which mean i64, f64, str, bytes and bool. Raises SpecError.
        """
        code = getattr(function, "__code__", None)
        if code is None:
            raise SpecError(f"{function!r} is not a function: decorate a `def`, or use add_probe()")
        name = function.__name__
        if code.co_flags & (_CO_VARARGS | _CO_VARKEYWORDS) or code.co_kwonlyargcount:
            raise SpecError(
                f"probe {name!r} takes a fixed list of arguments: no *args, **kwargs or "
                "keyword-only ones"
            )
        if code.co_flags & (_CO_GENERATOR | _CO_COROUTINE | _CO_ASYNC_GENERATOR):
            raise SpecError(f"probe {name!r} is declared by a plain `def`: its body never runs")
        names = code.co_varnames[: code.co_argcount]
        args = tuple(stubgen.Arg(arg, _annotated_type(function, arg)) for arg in names)
        probe: Any = self._declare(stubgen.Probe(name, args), defaults=function.__defaults__ or ())
        probe.__name__ = name
        probe.__qualname__ = function.__qualname__
        probe.__module__ = function.__module__
        probe.__doc__ = function.__doc__
        probe.__wrapped__ = function
        declared: Probe[P] = probe
        return declared

    def add_probe(self, name: str, /, **args: ArgType | type | str) -> Probe[...]:
        """Declare a probe step by step: `add_probe("refund", id=u64, reason=str)`.

        Raises SpecError.
        """
        typed = tuple(stubgen.Arg(arg, _argtype(arg, given)) for arg, given in args.items())
        return self._declare(stubgen.Probe(name, typed))

    def _declare(
        self,
        description: stubgen.Probe,
        *,
        codes: str | None = None,
        defaults: tuple[Any, ...] = (),
    ) -> Probe[...]:
        name = description.name
        if name in self._probes:
            raise SpecError(f"provider {self.name!r} already has a probe {name!r}: rename one")
        probe: Probe[...] = Probe(
            provider=self,
            spec=description,
            label=f"{self.name}:{name}",
            names=tuple(arg.name for arg in description.args),
            codes=codes or "".join(arg.type.code for arg in description.args),
            defaults=defaults,
        )
        probe._forgotten = True
        probe._strict = _strict
        probe._listener = _listener
        self._probes[name] = probe
        return probe

    # --- loading

    def load(self) -> bool:
        """Make the probes declared so far visible to tracers; True if they are.

        Probes that an earlier call has loaded stay where they are; new ones get a stub of their
        own. Where this machine has no place for a stub, the program goes on unchanged: `why_not`
        tells the reason, one WARNING line is logged, and only a strict program gets LoadError.
        """
        pending = [probe for probe in self.probes if not probe.loaded]
        if not pending:
            return True
        description = stubgen.Provider(self.name, tuple(probe.spec for probe in pending))
        search = os.environ.get("USDT_STUB_PATH", "")
        built = self._built + [path for path in search.split(os.pathsep) if path]
        try:
            stub, path = open_stub(description, built=built, nop=self._nop)
            for probe in pending:
                probe._attach(
                    stub,
                    function_symbol(description, probe.spec),
                    semaphore_symbol(description, probe.spec),
                )
        except LoadError as error:
            self._why_not = str(error)
            for probe in pending:
                probe._forgotten = False
            if _strict:
                raise
            _warn(str(error))
            return False
        self._why_not = None
        self._stubs.append((stub, path))
        return True

    def unload(self) -> None:
        """Take the probes away from tracers; firing them does nothing until the next load()."""
        for probe in self.probes:
            if probe.loaded:
                probe._detach()
                probe._forgotten = True
        self._stubs.clear()
        self._why_not = None

    def __enter__(self) -> Provider:
        self.load()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.unload()

    def _fired_unloaded(self) -> None:
        """The first fire of a probe that is not loaded: say so once, then be quiet."""
        for probe in self.probes:
            probe._forgotten = False
        _warn(f"a probe of provider {self.name!r} was fired while not loaded: call load() first")


def _warn(message: str) -> None:
    try:
        from logging import getLogger  # costs 5 ms, and only a program in trouble gets here
    except ImportError:
        return  # the interpreter is ending: nothing can be imported, and nobody reads logs
    getLogger("usdt").warning(message)


def _annotated_type(function: Callable[P, None], arg: str) -> ArgType:
    annotations = function.__annotations__
    if arg not in annotations:
        hint = " (declare probes at module level, not in a class)" if arg == "self" else ""
        raise SpecError(
            f"argument {arg!r} of probe {function.__name__!r} has no type: annotate it, as in "
            f"`{arg}: u64`{hint}"
        )
    annotation = annotations[arg]
    if isinstance(annotation, str):  # from __future__ import annotations
        annotation = _evaluate(function, annotation)
    return _argtype(arg, annotation)


def _evaluate(function: Callable[P, None], annotation: str) -> object:
    """What a postponed annotation names; a table name needs no import at run time."""
    last = annotation.rpartition(".")[2].strip()
    if last in BY_NAME:
        return last
    try:
        return eval(annotation, getattr(function, "__globals__", {}))
    except Exception:
        return annotation


def _argtype(arg: str, given: object) -> ArgType:
    if isinstance(given, ArgType):
        return given
    if isinstance(given, type) and given in BY_ANNOTATION:
        return BY_ANNOTATION[given]
    if isinstance(given, str) and given in BY_NAME:
        return BY_NAME[given]
    raise SpecError(
        f"argument {arg!r} has type {getattr(given, '__name__', given)!r}: use one of "
        f"{', '.join(BY_NAME)}, or int, float, str, bytes, bool"
    )
