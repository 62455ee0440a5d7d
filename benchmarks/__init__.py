# SPDX-License-Identifier: MIT
"""What the probes cost, measured: `make bench`. docs/performance.md explains the rows."""
