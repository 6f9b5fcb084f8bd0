# SPDX-License-Identifier: Apache-2.0
"""Runs an exported policy anywhere: NumPy alone."""

from speckv.runtime.policy import MlpPolicy, PolicyController

__all__ = ["MlpPolicy", "PolicyController"]
