# SPDX-License-Identifier: Apache-2.0
"""SpecKV: learn how many tokens to speculate, and prove that it pays."""

__version__ = "0.1.0"
