# SPDX-License-Identifier: Apache-2.0
"""Trained policies for decoding libraries, as files that run there or compiled down to tables."""

from speckv.export.compiled import CompiledTable
from speckv.export.making import make_policy
from speckv.export.source import Source

__all__ = ["CompiledTable", "Source", "make_policy"]
