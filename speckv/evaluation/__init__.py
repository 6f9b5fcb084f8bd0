# SPDX-License-Identifier: Apache-2.0
"""Compares controllers on recorded prompts: figures, intervals, tables, plots.

Import from the submodules: `compare` alone needs no plotting library.
"""
