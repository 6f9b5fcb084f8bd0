# SPDX-License-Identifier: Apache-2.0
"""Comparisons of controllers on recordings: metrics, intervals, claims, tables, plots.

The API is `compare`, whose result `render_comparison` prints and `save_report` writes; docs/evaluation.md explains it.
"""

from speckv.evaluation.compare import Comparison, compare
from speckv.evaluation.text import render_comparison

__all__ = ["Comparison", "compare", "render_comparison"]
