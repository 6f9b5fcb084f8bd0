# SPDX-License-Identifier: Apache-2.0
"""Trained policies made ready for decoding libraries: whole where a library can run one, compiled down where not."""

from speckv.export.compiled import CompiledConstant, CompiledTable
from speckv.export.making import make_policy
from speckv.export.source import Source

__all__ = ["CompiledConstant", "CompiledTable", "Source", "make_policy"]
