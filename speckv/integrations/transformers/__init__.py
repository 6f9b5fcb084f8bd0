# SPDX-License-Identifier: Apache-2.0
"""transformers under a policy: its own assisted generation, or SpecKV's engine behind its `generate`."""

from speckv.integrations.transformers.control import control
from speckv.integrations.transformers.engine import custom_generate, prepare

__all__ = ["control", "custom_generate", "prepare"]
