# SPDX-License-Identifier: Apache-2.0
"""The SpecKV paper's controller (arXiv:2605.02888) with what a running system knows: signals of the step before."""
