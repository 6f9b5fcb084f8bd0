# SPDX-License-Identifier: Apache-2.0
"""Compares controllers on recorded prompts; `compare` alone needs no plotting library."""
