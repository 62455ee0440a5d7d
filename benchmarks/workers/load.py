# SPDX-License-Identifier: MIT
"""What a start costs in a new process: load.py PROBES. Prints seconds as JSON.

Times `import usdt`, the declarations, load(), unload() and load() again; whether the stub is on
disk already is the caller's business.
"""

import sys
from time import perf_counter

start = perf_counter()
import usdt  # noqa: E402

imported = perf_counter()
count = int(sys.argv[1])
provider = usdt.Provider("bench")
for i in range(count):
    provider.add_probe(f"request_{i}", id=usdt.u64, status=usdt.i32, path=str)
declared = perf_counter()
loaded = provider.load()
done = perf_counter()
if not loaded:
    sys.exit(provider.why_not)
provider.unload()
unloaded = perf_counter()
provider.load()
again = perf_counter()

import json  # noqa: E402  not before: it would pay for modules that `import usdt` needs

print(
    json.dumps(
        {
            "import": imported - start,
            "declare": declared - imported,
            "load": done - declared,
            "unload": unloaded - done,
            "again": again - unloaded,
        }
    )
)
