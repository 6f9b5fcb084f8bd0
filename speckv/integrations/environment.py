# SPDX-License-Identifier: Apache-2.0
"""The policy named by an environment variable, for libraries that construct an integration's classes."""

import os
from collections.abc import Mapping

from speckv.errors import ConfigError
from speckv.runtime import Policy

POLICY = "SPECKV_POLICY"


def named_policy(environment: Mapping[str, str] = os.environ) -> Policy:
    """Loads the policy that SPECKV_POLICY names. ConfigError if it is not set, CheckpointError if it is unusable."""
    folder = environment.get(POLICY)
    if not folder:
        raise ConfigError(f"Expected {POLICY} to name an exported policy's folder, but it is not set.")
    return Policy.load(folder)
