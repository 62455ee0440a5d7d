# SPDX-License-Identifier: MIT
"""`python -m ustack` is the `ustack` command."""

from ustack.cli import main

raise SystemExit(main())
