# SPDX-License-Identifier: Apache-2.0
"""Policies at work inside decoding libraries: one adapter a library, which is imported when its adapter is used."""
