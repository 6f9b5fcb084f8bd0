# SPDX-License-Identifier: Apache-2.0
"""The SpecKV paper (arXiv:2605.02888) recomputed from its released files, and its policies by what they realise."""
