# SPDX-License-Identifier: MIT
"""Where a stripped file's symbols are found, what damage does, and how names are shown.

Every file here is made in the test; nothing below /usr/lib/debug is touched.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from binutils import compile_c, readelf_functions, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ustack import binaries
from ustack.binaries import Binaries, Binary, Unread
from ustack.demangle import demangle
from ustack.elf import BytesSource, DamagedError, read_elf
from ustack.elfsym import function_symbols
from ustack.frame import Reason, VirtOffset


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """An executable with all its symbols."""
    return compile_c(tmp_path / "program")


def hidden(path: Path) -> VirtOffset:
    """The address of a static function: what a stripped file cannot name."""
    return VirtOffset(
        next(at for at, names in readelf_functions(path).items() if "hidden_work" in names)
    )


def read(path: Path, *, root: str = "") -> Binary | Unread:
    fd = os.open(path, os.O_RDONLY)
    try:
        return Binaries().read(fd, str(path), root=root)
    finally:
        os.close(fd)


def named(found: Binary | Unread, address: VirtOffset) -> str | None:
    assert isinstance(found, Binary)
    symbol = found.symbols.find(address)
    return symbol.name if symbol else None


def split(program: Path, debug: Path) -> None:
    """Move the symbols to `debug`, and link to it."""
    debug.parent.mkdir(parents=True, exist_ok=True)
    run("objcopy", "--only-keep-debug", program, debug)
    run("strip", program)
    run("objcopy", f"--add-gnu-debuglink={debug}", program)


@pytest.mark.parametrize("place", ["{0}/program.debug", "{0}/.debug/program.debug"])
def test_a_debug_link_is_followed(program: Path, place: str) -> None:
    """Next to the file, and in .debug."""
    address = hidden(program)
    split(program, Path(place.format(program.parent)))
    assert named(read(program), address) == "hidden_work"


def test_debug_files_are_found_by_name_and_build_id_below_a_root(
    program: Path, tmp_path: Path
) -> None:
    """As a container has them."""
    address, root = hidden(program), tmp_path / "root"
    debug = tmp_path / "program.debug"
    build_id = read(program).elf.build_id
    split(program, debug)
    for target in (
        f"usr/lib/debug/.build-id/{build_id[:2]}/{build_id[2:]}.debug",
        f"usr/lib/debug{program.parent}/program.debug",
    ):
        shutil.rmtree(root, ignore_errors=True)
        (root / target).parent.mkdir(parents=True)
        shutil.copy(debug, root / target)
        elsewhere = tmp_path / "elsewhere"
        debug.rename(elsewhere)
        assert named(read(program), address) is None
        assert named(read(program, root=str(root)), address) == "hidden_work"
        elsewhere.rename(debug)


def test_another_files_symbols_are_refused(program: Path, tmp_path: Path) -> None:
    """By build id; by the CRC where the build ids say nothing."""
    address, debug = hidden(program), tmp_path / "program.debug"
    split(program, debug)
    other = compile_c(tmp_path / "other", "-O0")
    run("objcopy", "--only-keep-debug", other, debug)
    assert named(read(program), address) is None

    program = compile_c(tmp_path / "program", "-Wl,--build-id=none")
    split(program, debug)
    assert named(read(program), address) == "hidden_work"
    with debug.open("ab") as file:
        file.write(b"\0")
    assert named(read(program), address) is None


def test_a_debug_file_that_is_damaged_costs_only_its_symbols(program: Path) -> None:
    """The file's own stay, and a sentence says what is wrong."""
    debug = program.with_suffix(".debug")
    split(compile_c(program, "-rdynamic"), debug)
    exported = {name: at for at, names in readelf_functions(program).items() for name in names}
    data = bytearray(debug.read_bytes())
    elf = read_elf(BytesSource(bytes(data)))
    index = next(i for i, s in enumerate(elf.sections) if s.type == 2)
    at = int.from_bytes(data[40:48], "little") + index * 64
    data[at + 40 : at + 44] = (999).to_bytes(4, "little")  # sh_link
    debug.write_bytes(data)
    run("objcopy", "--remove-section=.gnu_debuglink", program)
    run("objcopy", f"--add-gnu-debuglink={debug}", program)
    found = read(program)
    assert isinstance(found, Binary)
    assert "its debug file" in found.problem
    assert named(found, VirtOffset(exported["main"])) == "main"


def test_mini_debug_information_is_unpacked(program: Path, tmp_path: Path) -> None:
    """.gnu_debugdata, as Fedora makes it: an xz of an ELF file with the symbols."""
    address, debug = hidden(program), tmp_path / "mini"
    run("objcopy", "--only-keep-debug", program, debug)
    run("xz", "--check=crc32", debug)
    packed = debug.with_suffix(".xz")
    run("strip", program)
    run("objcopy", f"--add-section=.gnu_debugdata={packed}", program)
    assert named(read(program), address) == "hidden_work"

    packed.write_bytes(packed.read_bytes()[:-40])
    run("objcopy", f"--update-section=.gnu_debugdata={packed}", program)
    found = read(program)
    assert isinstance(found, Binary)
    assert ".gnu_debugdata" in found.problem


def test_a_bomb_does_not_go_off(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What unpacks to more than any real one is refused."""
    bomb = tmp_path / "bomb"
    bomb.write_bytes(bytes(1 << 20))
    run("xz", bomb)
    run("strip", program)
    run("objcopy", f"--add-section=.gnu_debugdata={bomb}.xz", program)
    monkeypatch.setattr("ustack.elfsym._MAX_UNPACKED", 1 << 19)
    found = read(program)
    assert isinstance(found, Binary)
    assert "larger than any real one" in found.problem


def test_compressed_sections_are_refused_by_name(program: Path) -> None:
    """With what to type."""
    data = bytearray(program.read_bytes())
    elf = read_elf(BytesSource(bytes(data)))
    index = next(i for i, s in enumerate(elf.sections) if s.name == ".symtab")
    at = int.from_bytes(data[40:48], "little") + index * 64
    data[at + 8 : at + 16] = (0x800).to_bytes(8, "little")  # sh_flags
    program.write_bytes(data)
    found = read(program)
    assert isinstance(found, Binary)
    assert ".symtab is compressed: objcopy --decompress-debug-sections" in found.problem


def test_strip_with_exceptions_keeps_the_dynamic_symbols(tmp_path: Path) -> None:
    """A .symtab of one symbol does not hide .dynsym's, nor the debug file's."""
    program = compile_c(tmp_path / "program", "-rdynamic")
    address = hidden(program)
    names = {name: at for at, all_ in readelf_functions(program).items() for name in all_}
    debug = tmp_path / "program.debug"
    run("objcopy", "--only-keep-debug", program, debug)
    run("strip", "--strip-all", "--keep-symbol=main", program)
    assert named(read(program), VirtOffset(names["visible_work"])) == "renamed_work"
    run("objcopy", f"--add-gnu-debuglink={debug}", program)
    assert named(read(program), address) == "hidden_work"


def test_a_file_is_read_once(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until it changes; and its copies once, by build id."""
    cache, calls = Binaries(), []

    def counted(*arguments: object, **options: object) -> object:
        calls.append(1)
        return function_symbols(*arguments, **options)

    monkeypatch.setattr(binaries, "function_symbols", counted)
    copy = shutil.copy(program, program.with_suffix(".copy"))
    for path in (program, program, copy):
        with open(path, "rb") as file:
            found = cache.read(file.fileno(), str(path))
            assert isinstance(found, Binary)
    assert len(calls) == 1
    assert cache.known(found.elf.build_id) is found
    run("strip", copy)
    with open(copy, "rb") as file:
        stripped = cache.read(file.fileno(), str(copy))
    assert isinstance(stripped, Binary)
    assert len(stripped.symbols) < len(found.symbols)
    assert cache.known(found.elf.build_id) is found


def test_files_that_are_no_elf_have_no_symbols(tmp_path: Path) -> None:
    """A sentence names them; an ELF file that is cut short is damaged."""
    path = tmp_path / "text"
    path.write_text("no ELF file at all")
    assert read(path) == Unread(Reason.NO_SYMBOLS, f"{path}: it is not an ELF file")
    path.write_bytes(b"\x7fELF\2\1")
    found = read(path)
    assert isinstance(found, Unread)
    assert found.why is Reason.DAMAGED


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_only_regular_files_are_opened(tmp_path: Path, make: object) -> None:
    """A FIFO would wait for its writer, a device may do things."""
    make(tmp_path / "odd")
    assert binaries.open_regular(str(tmp_path / "odd")) is None
    assert binaries.open_regular("a\0b") is None


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small shared object."""
    path = tmp_path_factory.mktemp("image") / "object"
    return compile_c(path, "-shared", "-fPIC", "-Wl,-z,noseparate-code").read_bytes()


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_damage_is_a_reason(image: bytes, data: st.DataObject) -> None:
    """Bytes changed anywhere, most of all in the headers, and files cut short: no traceback."""
    damaged = bytearray(image[: data.draw(st.integers(0, len(image)) | st.just(len(image)))])
    shoff = int.from_bytes(image[40:48], "little")
    where = st.integers(0, 0x400) | st.integers(shoff, len(image)) | st.integers(0, len(image))
    for _ in range(data.draw(st.integers(0, 6))):
        at = data.draw(where)
        if at < len(damaged):
            damaged[at] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]) | st.integers(0, 255))
    found = Binaries().parse(BytesSource(bytes(damaged)), "damaged")
    if isinstance(found, Binary):
        for at in range(0, 0x5000, 64):
            symbol, _ = found.find(at)
            assert symbol is None or isinstance(symbol.name, str)


def test_hostile_headers_take_no_memory(tmp_path: Path) -> None:
    """A sparse file whose headers promise terabytes is refused before it is read."""
    path = tmp_path / "sparse"
    with compile_c(path).open("r+b") as file:
        data = file.read()
        elf = read_elf(BytesSource(data))
        index = next(i for i, s in enumerate(elf.sections) if s.name == ".symtab")
        at = int.from_bytes(data[40:48], "little") + index * 64
        file.seek(at + 32)
        file.write((24 << 35).to_bytes(8, "little"))  # sh_size
        file.truncate(1 << 41)
    found = read(path)
    assert isinstance(found, Binary)
    assert "more than any real" in found.problem


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("read", "read"),
        ("_start", "_start"),
        ("_ZN4node5StartEiPPc", "node::Start(int, char**)"),
        ("_ZN4node5StartEiPPc@plt", "node::Start(int, char**)@plt"),
        ("_ZN4node5StartEiPPc.cold", "node::Start(int, char**) [clone .cold]"),
        ("_ZNSt6vectorIiSaIiEE4sizeEv", "std::vector<int, std::allocator<int> >::size()"),
        ("_Znot_mangled", "_Znot_mangled"),
        ("_ZN3std2rt10lang_start17h0123456789abcdefE", "std::rt::lang_start"),
        (
            "_ZN71_$LT$Test$u20$$u2b$$u20$$u27$static$u20$as$u20$foo..Bar$LT$Test$GT$$GT$3bar17h930b740aa94f1d3aE",
            "<Test + 'static as foo::Bar<Test>>::bar",
        ),
    ],
)  # fmt: skip
def test_names_are_demangled(name: str, shown: str) -> None:
    """C++ and Rust's older spelling by the C++ runtime; what is neither stays."""
    assert demangle(name) == shown


def test_rusts_newer_names_are_demangled() -> None:
    """By a package; without it they stay as they are."""
    name = "_RNvMNtCs3ssYzQotkvD_3std4pathNtB2_7PathBuf3newCs15kBYyAo9fc_7mycrate"
    program = (
        "import sys; sys.modules['rust_demangler'] = None\n"
        f"from ustack.demangle import demangle; print(demangle({name!r}))"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == name
    pytest.importorskip("rust_demangler", reason="needs the package rust-demangler")
    assert demangle(name) == "<std::path::PathBuf>::new"
    assert demangle("_Rnot_mangled") == "_Rnot_mangled"


def test_cxxfilt_shows_the_same_names() -> None:
    """Over the C++ names of whatever large C++ program is here."""
    path = next(filter(os.path.exists, ("/usr/bin/node", "/usr/bin/bpftrace", "/usr/bin/gdb")), "")
    if not path:
        pytest.skip("needs a C++ program: node, bpftrace or gdb")
    mangled = [
        name for names in readelf_functions(path).values() for name in names
        if name.startswith("_Z") and "$" not in name
    ][:3000]  # fmt: skip
    shown = run("c++filt", "-i", input="\n".join(mangled)).splitlines()
    assert [demangle(name) for name in mangled] == shown


def test_damaged_error_is_what_parsers_raise() -> None:
    """And nothing else, for an empty file."""
    with pytest.raises(DamagedError):
        read_elf(BytesSource(b""))
