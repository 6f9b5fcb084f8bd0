# SPDX-License-Identifier: Apache-2.0
"""The SpecKV paper (arXiv:2605.02888) from the files it released: its figures, and what the same files say besides."""
