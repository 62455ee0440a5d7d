# SPDX-License-Identifier: MIT
"""The names that users may rely on, what importing them costs, and who imports whom.

Reads the sources as text: an import rule that only holds while nobody calls something is none.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import stubgen
import usdt
import usdt.stapsdt
import usdt.testing

ROOT = Path(__file__).resolve().parents[2]

#: What a traced program may import; everything else of `usdt` is its command.
LIBRARY = {
    "usdt", "usdt._nop", "usdt._probe", "usdt.provider", "usdt.stapsdt", "usdt.stubfile",
    "usdt.testing",
}  # fmt: skip

#: What each file may import beyond the standard library and its own project.
THIRD_PARTY = {
    "elftools": {"stubgen.read"},
    "lief": {"stubgen.check"},
    "rust_demangler": {"ustack.demangle"},
    "shtab": {"stubgen.cli", "usdt.cli", "ustack.cli"},
}

#: Of the standard library, but not of every minor's.
SOME_MINORS = {"_sha2", "_sha256"}

#: Costs a service 5 to 15 ms each, or starts something.
TOO_HEAVY = {
    "argparse", "ast", "asyncio", "contextlib", "ctypes", "dataclasses", "enum", "inspect",
    "json", "logging", "multiprocessing", "pathlib", "re", "shutil", "subprocess",
    "tempfile", "threading", "traceback", "typing",
}  # fmt: skip


def test_usdt_exports_these_names() -> None:
    """The list is the promise; a new name is added here on purpose."""
    assert usdt.__all__ == [
        "LoadError", "Probe", "Provider", "SpecError", "f32", "f64", "i8", "i16", "i32", "i64",
        "ptr", "strict", "u8", "u16", "u32", "u64",
    ]  # fmt: skip


@pytest.mark.parametrize("module", [usdt, usdt.testing, usdt.stapsdt, stubgen])
def test_what_is_exported_is_there(module: object) -> None:
    """`from module import *` works, and takes no private name."""
    for name in module.__all__:
        assert not name.startswith("_")
        assert hasattr(module, name)


def test_other_modules_export_these_names() -> None:
    """The smaller surfaces."""
    assert sorted(usdt.testing.__all__) == ["Event", "capture"]
    assert sorted(usdt.stapsdt.__all__) == ["ArgTypes", "Probe", "Provider"]
    assert sorted(stubgen.__all__) == ["Arg", "Probe", "Provider", "SpecError", "build"]


def public(thing: object) -> list[str]:
    return sorted(name for name in dir(thing) if not name.startswith("_"))


def test_provider_and_probe_have_these_attributes() -> None:
    """Methods and attributes are names too."""
    assert public(usdt.Provider) == [
        "add_probe", "load", "name", "paths", "probe", "probes", "spec", "unload", "why_not",
    ]  # fmt: skip
    assert public(usdt.Probe) == [
        "dropped", "enabled", "fire", "lazy", "loaded", "provider", "spec",
    ]  # fmt: skip


def test_errors_are_what_they_are_caught_as() -> None:
    """SpecError is a programmer's ValueError; LoadError is the machine's."""
    assert issubclass(usdt.SpecError, ValueError)
    assert issubclass(usdt.LoadError, RuntimeError)
    assert usdt.SpecError is stubgen.SpecError


def test_the_documented_names_have_docstrings() -> None:
    """help() says something about each."""
    for cls in (usdt.Provider, usdt.Probe):
        for name in public(cls):
            if name not in ("name",):
                assert getattr(cls, name).__doc__, name


def isolated(program: str) -> str:
    """Run a program in a bare interpreter: no site, no user's packages, no environment."""
    parent = os.path.dirname(os.path.dirname(usdt.__file__))
    program = f"import sys; sys.path.insert(0, {parent!r}); before = set(sys.modules)\n{program}"
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.parametrize(
    "program",
    [
        "import usdt",
        "import usdt; shop = usdt.Provider('shop'); shop.add_probe('x', a=usdt.u64); shop.load()",
    ],
    ids=["import", "load"],
)
def test_importing_and_loading_is_light(program: str, stub_dir: Path) -> None:
    """Nothing third-party and nothing heavy, load() included."""
    program = f"import os; os.environ['USDT_STUB_DIR'] = {str(stub_dir)!r}\n{program}\n"
    loaded = set(isolated(program + "print(*(set(sys.modules) - before))").split())
    ours = {name for name in loaded if name.partition(".")[0] in ("usdt", "stubgen")}
    assert ours & {"usdt.provider", "usdt._probe", "stubgen.image"}
    assert {name for name in ours if name.startswith("usdt")} <= LIBRARY
    assert {name.partition(".")[0] for name in loaded - ours} <= sys.stdlib_module_names
    assert loaded & TOO_HEAVY == set()


def test_importing_starts_no_thread_and_opens_no_file() -> None:
    """One thread, and the same file descriptors as before."""
    program = """
import os
fds = os.listdir("/proc/self/fd")
import usdt
assert os.listdir("/proc/self/fd") == fds
assert len(os.listdir("/proc/self/task")) == 1
print("light")
"""
    assert isolated(program) == "light\n"


def test_a_missing_extension_says_what_to_run() -> None:
    """A checkout that was not built is told so in one line."""
    program = """
sys.modules["usdt._probe"] = None
try:
    import usdt
except ImportError as error:
    print(error)
"""
    message = isolated(program)
    assert message.startswith("usdt._probe is not built for this Python (")
    assert message.endswith("run `pip install usdt-toolkit`, or `pip install -e .` in a checkout\n")
    assert message.count("\n") == 1


# --- who may import whom


def modules() -> dict[str, Path]:
    """Each module of the packages by its dotted name."""
    found = {}
    for package in ("stubgen", "usdt", "ustack"):
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


MODULES = modules()
EXTENSION = "usdt._probe"


def imports(name: str, *, top_only: bool = False) -> set[str]:
    """The dotted names a module imports when it runs, `from a import b` as a.b if that is one."""
    body = ast.parse(MODULES[name].read_text()).body
    found = set()
    for node in walk(body, top_only):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in {*MODULES, EXTENSION} else node.module)
    return found


def walk(body: list[ast.stmt], top_only: bool) -> Iterator[ast.AST]:
    """Every node that runs: not the body of `if TYPE_CHECKING:`; without functions if asked."""
    for node in body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from walk(node.orelse, top_only)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and top_only:
            continue
        else:
            yield node
            yield from walk(list(ast.iter_child_nodes(node)), top_only)


def package(name: str) -> str:
    return name.partition(".")[0]


def test_the_rules_below_see_the_imports() -> None:
    """The parser finds imports in functions, and leaves out those for type checkers."""
    assert "logging" in imports("usdt.provider")
    assert "logging" not in imports("usdt.provider", top_only=True)
    assert "typing" not in imports("usdt.provider")
    assert "usdt.stubfile" in imports("usdt.provider")
    assert {"usdt.cli", "stubgen.cli", "stubgen.read"} <= set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_parts_import_what_they_may(name: str) -> None:
    """stubgen and ustack import no other part; usdt's library imports neither ustack nor ELF."""
    ours = {package(other) for other in imports(name)} & {"stubgen", "usdt", "ustack"}
    allowed = {package(name)}
    if package(name) == "usdt":
        allowed |= {"stubgen"} if name in LIBRARY else {"stubgen", "ustack"}
    assert ours <= allowed
    if name in LIBRARY:
        assert "stubgen.read" not in imports(name)
        library = {other for other in imports(name) if package(other) == "usdt"}
        assert library <= LIBRARY


@pytest.mark.parametrize("name", MODULES)
def test_nothing_imports_a_cli(name: str) -> None:
    """Only `python -m` does."""
    if not name.endswith("__main__"):
        assert [other for other in imports(name) if other.endswith(".cli")] == []


@pytest.mark.parametrize("name", MODULES)
def test_third_party_stays_where_it_belongs(name: str) -> None:
    """pyelftools is in stubgen.read alone: what writes a stub is never what checks it."""
    others = {package(other) for other in imports(name)} - {"stubgen", "usdt", "ustack"}
    third = others - sys.stdlib_module_names - SOME_MINORS
    assert {other for other in third if name not in THIRD_PARTY.get(other, ())} == set()


@pytest.mark.parametrize("name", MODULES)
def test_arrows_go_one_way(name: str) -> None:
    """No module imports, through others, a module that imports it."""
    seen: set[str] = set()
    todo = imports(name, top_only=True) & set(MODULES)
    while todo:
        other = todo.pop()
        seen.add(other)
        todo |= (imports(other, top_only=True) & set(MODULES)) - seen
    assert name not in seen


@pytest.mark.parametrize("name", MODULES)
def test_a_module_says_whose_it_is_and_what_it_owns(name: str) -> None:
    """First line the licence, then a docstring."""
    text = MODULES[name].read_text()
    assert text.startswith("# SPDX-License-Identifier: MIT\n")
    assert ast.get_docstring(ast.parse(text)) or name.endswith("__main__")
