# SPDX-License-Identifier: Apache-2.0
"""Moved to `speckv.models.signals`."""

from speckv.models.signals import signals

__all__ = ["signals"]
