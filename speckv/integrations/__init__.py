# SPDX-License-Identifier: Apache-2.0
"""Policies inside decoding libraries, one package a library, which alone imports it."""
