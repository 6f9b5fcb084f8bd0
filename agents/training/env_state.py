# SPDX-License-Identifier: Apache-2.0
"""The state of a running vector environment as plain arrays: everything its future depends on but its recordings."""

import json
from collections.abc import Mapping
from dataclasses import fields

import numpy as np
from numpy.typing import NDArray

from envs.vector import GammaSelectionVectorEnv
from speckv.errors import CheckpointError
from speckv.observation import History

Arrays = dict[str, NDArray[np.generic]]


def capture(env: GammaSelectionVectorEnv) -> tuple[Arrays, str]:
    """Copies the state out.

    Args:
        env: Has been reset.

    Returns:
        Arrays by name, and the generators' states as JSON.
    """
    core = env.core
    batch = core.batch
    arrays: Arrays = {"sequence": batch.sequence.copy()}
    arrays |= {f"history.{f.name}": getattr(batch.history, f.name).copy() for f in fields(History)}
    arrays |= {f"sums.{name}": values.copy() for name, values in core._sums.items()}
    if batch.acceptance == "rejection":
        arrays |= {"accepted": batch._accepted.copy(), "stop": batch._stop.copy()}
    return arrays, json.dumps([generator.bit_generator.state for generator in env._generators])


def restore(env: GammaSelectionVectorEnv, arrays: Mapping[str, NDArray[np.generic]], generators: str) -> None:
    """Puts a captured state back into an environment with the same recordings, settings and number of slots.

    Raises:
        CheckpointError: if the state does not fit the environment.
    """
    env.reset(seed=0)
    core = env.core
    batch = core.batch
    states = json.loads(generators)
    if len(states) != env.num_envs or arrays["sequence"].shape != (env.num_envs,):
        raise CheckpointError(f"Expected the state of {env.num_envs} environments, got {len(states)}. Start a new run.")
    # Under "rejection" this draws from the generators, whose states are therefore restored last.
    batch.assign(np.arange(env.num_envs), arrays["sequence"], env._generators)
    batch.history = History(**{f.name: np.array(arrays[f"history.{f.name}"]) for f in fields(History)})
    for name, values in core._sums.items():
        values[:] = arrays[f"sums.{name}"]
    if batch.acceptance == "rejection":
        batch._accepted[:] = arrays["accepted"]
        batch._stop[:] = arrays["stop"]
    for generator, state in zip(env._generators, states, strict=True):
        generator.bit_generator.state = state
