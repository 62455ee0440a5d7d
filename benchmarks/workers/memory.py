# SPDX-License-Identifier: MIT
"""What a loaded provider of 10 probes keeps in memory. Prints KiB a provider as JSON.

Counts what the process has resident, Python objects and mapped stubs together.
"""

import ctypes
import gc
import json

import usdt

COUNT, PROBES = 200, 10

trim = ctypes.CDLL(None).malloc_trim


def resident():
    gc.collect()
    trim(0)
    with open("/proc/self/smaps_rollup") as rollup:
        fields = (line.split() for line in rollup)
        found = {words[0]: int(words[1]) for words in fields if words[-1] == "kB"}
    return found["Rss:"], found["Pss:"]


def make(count, prefix):
    made = []
    for i in range(count):
        provider = usdt.Provider(f"{prefix}{i}")
        for j in range(PROBES):
            provider.add_probe(f"request_{j}", id=usdt.u64, status=usdt.i32, path=str)
        provider.load()
        any(provider.probes)  # reads the semaphores, as every fire does
        made.append(provider)
    return made


# What the first provider of a process costs on top is part of `import usdt`.
warm = make(1, "warm")
rss, pss = resident()
kept = make(COUNT, "bench")
full_rss, full_pss = resident()
for provider in kept:
    provider.unload()
unloaded_rss, _ = resident()
print(
    json.dumps(
        {
            "rss": (full_rss - rss) / COUNT,
            "pss": (full_pss - pss) / COUNT,
            "unloaded": (unloaded_rss - rss) / COUNT,
        }
    )
)
