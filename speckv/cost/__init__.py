# SPDX-License-Identifier: Apache-2.0
"""Measured time: seconds of a draft pass, a verify pass and a decode step on one machine.

A cost table holds medians at a few widths (tokens scored in one pass) and one context length, and the slope over the
context, for one or several batch sizes; everything else is interpolated. A decode step of `num_drafted` tokens costs

    draft(1 + draft_lag) + (num_drafted - 1) * draft(1) + verify(num_drafted + 1)

where `draft_lag` counts the emitted tokens that the draft's cache has not read yet; without drafting it costs
`verify(1)`, plain decoding. Prefill is not counted.
"""

from speckv.cost.entry import (
    MOST_ERROR,
    SCHEMA_VERSION,
    CostEntry,
    CostFit,
    describe_clock,
    describe_fit,
    require_single_request,
    summarise_checks,
)
from speckv.cost.table import ASSETS, KINDS, CompiledCost, CostTable, find_cost_table

__all__ = [
    "ASSETS",
    "KINDS",
    "MOST_ERROR",
    "SCHEMA_VERSION",
    "CompiledCost",
    "CostEntry",
    "CostFit",
    "CostTable",
    "describe_clock",
    "describe_fit",
    "find_cost_table",
    "require_single_request",
    "summarise_checks",
]
