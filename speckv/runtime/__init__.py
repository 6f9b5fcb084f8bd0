# SPDX-License-Identifier: Apache-2.0
"""Runs a stored policy anywhere: NumPy alone."""

from speckv.runtime.learned import MlpPolicy, PolicyController
from speckv.runtime.policy import Policy, load
from speckv.runtime.session import Session

__all__ = ["MlpPolicy", "Policy", "PolicyController", "Session", "load"]
