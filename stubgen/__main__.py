# SPDX-License-Identifier: MIT
"""`python -m stubgen` is the `usdt-stubgen` command."""

from stubgen.cli import main

raise SystemExit(main())
