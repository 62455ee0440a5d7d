# SPDX-License-Identifier: MIT
"""`python -m usdt` is the `usdt` command."""

from usdt.cli import main

raise SystemExit(main())
