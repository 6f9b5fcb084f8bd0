# SPDX-License-Identifier: Apache-2.0
"""Runs an exported policy anywhere: NumPy alone."""

from speckv.runtime.exported import Policy, load
from speckv.runtime.policy import MlpPolicy, PolicyController
from speckv.runtime.session import Session

__all__ = ["MlpPolicy", "Policy", "PolicyController", "Session", "load"]
