# SPDX-License-Identifier: Apache-2.0
"""Supervised control: predict how far a draft survives, then weigh expected tokens against measured time."""
