# SPDX-License-Identifier: MIT
"""Stubs on disk and other people's tools, for tests that ask the latter about the former.

Must not judge: what a tool has to say is in the tests.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from stubgen import Arg, Probe, Provider, build
from stubgen.arch import MACHINES
from stubgen.argtypes import BY_NAME
from stubgen.image import file_name

KINDS = [(machine.name, nop) for machine in MACHINES.values() for nop in machine.nops]

NARROW = ("i8", "u8", "bool", "i16", "u16", "i32", "u32", "f32")
PROVIDER = Provider(
    "shop",
    (
        Probe("order_start", (Arg("id", "u64"), Arg("customer", "str"))),
        Probe("order_done", (Arg("id", "u64"), Arg("status", "i32"), Arg("ns", "u64"))),
        Probe("tick"),
        *(Probe(f"one_{name}", (Arg("value", name),)) for name in BY_NAME),
        *(Probe(f"n{n}", tuple(Arg(f"a{i}", "i64") for i in range(n))) for n in range(1, 13)),
        Probe("narrow", tuple(Arg(f"a{i}", NARROW[i % 8]) for i in range(12))),
        Probe("blobs", tuple(Arg(f"blob{i}", "bytes") for i in range(6))),
    ),
)


@dataclass(frozen=True)
class Stub:
    """A stub file and what it was made from."""

    path: Path
    provider: Provider
    arch: str
    nop: str

    @property
    def machine(self):
        return MACHINES[self.arch]


@pytest.fixture(scope="session", params=KINDS, ids="-".join)
def stub(request, tmp_path_factory):
    """A stub with every type and arity, for each machine and nop kind."""
    return make_stub(tmp_path_factory.mktemp("stub"), *request.param)


@pytest.fixture(scope="session", params=[nop for arch, nop in KINDS if arch == os.uname().machine])
def native_stub(request, tmp_path_factory):
    """The same, only for the machine that the tests run on."""
    return make_stub(tmp_path_factory.mktemp("native"), os.uname().machine, request.param)


def make_stub(directory, arch, nop):
    data = build(PROVIDER, arch=arch, nop=nop)
    path = directory / file_name(PROVIDER, data)
    path.write_bytes(data)
    path.chmod(0o755)
    return Stub(path, PROVIDER, arch, nop)


@pytest.fixture
def tool():
    """tool('readelf', '-h', path) -> its stdout and stderr as one text.

    A status that is not in `statuses` fails. A missing tool skips, and fails under CI.
    """

    def run(name, *args, statuses=(0,)):
        if shutil.which(name) is None:
            message = f"{name} is not installed"
            pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)
        done = subprocess.run(
            [name, *map(str, args)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode in statuses, f"{name} returned {done.returncode}: {done.stdout}"
        return done.stdout

    return run
