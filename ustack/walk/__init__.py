# SPDX-License-Identifier: MIT
"""Walkers: text for bpftrace that walks interpreter frames, and what its records mean.

One package per interpreter. Must not know how a tracer is started, nor how stacks are shown.
"""
