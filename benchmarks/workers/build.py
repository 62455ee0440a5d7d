# SPDX-License-Identifier: MIT
"""What making a stub costs. Prints seconds by number of probes as JSON.

Times stubgen alone: no file is written and nothing is loaded.
"""

import json
from time import perf_counter

import stubgen
from stubgen import Arg, Probe, Provider

ARGS = (Arg("id", "u64"), Arg("status", "i32"), Arg("path", "str"))

found = {}
for count in (1, 100, 1000):
    provider = Provider("bench", tuple(Probe(f"request_{i}", ARGS) for i in range(count)))
    for _ in range(7):
        start = perf_counter()
        stubgen.build(provider)
        found.setdefault(str(count), []).append(perf_counter() - start)
print(json.dumps(found))
