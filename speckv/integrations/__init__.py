# SPDX-License-Identifier: Apache-2.0
"""Policies at work inside decoding libraries, one room a library. Each library is imported by its own room alone."""
