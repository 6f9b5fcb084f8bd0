# SPDX-License-Identifier: Apache-2.0
"""What is set from outside: vLLM builds schedulers and proposers itself, so words reach them by the environment."""

import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from speckv.errors import ConfigError, nearest
from speckv.integrations.environment import named_policy
from speckv.runtime import Policy

COMPRESSION = "SPECKV_COMPRESSION"
COMBINE = "SPECKV_COMBINE"
PER_REQUEST = "SPECKV_PER_REQUEST"
SIGNALS = "SPECKV_SIGNALS"

COMBINATIONS: Mapping[str, Callable[[Sequence[int]], int]] = {
    "median": statistics.median_low,
    "mean": lambda gammas: (2 * sum(gammas) + len(gammas)) // (2 * len(gammas)),
    "min": min,
    "max": max,
}
"""How many gammas become one: the lower median, the mean rounded half up, the least, the greatest."""

_in_process: list[Policy] = []


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the environment says.

    Attributes:
        policy: Decides.
        compression: Of the target; the policy's first if None.
        combine: A key of `COMBINATIONS`.
        per_request: Whether drafts are cut to each request's own gamma.
        signals: Whether the draft's signals are taken from vLLM's proposer.
    """

    policy: Policy
    compression: str | None = None
    combine: str = "median"
    per_request: bool = False
    signals: bool = False

    @staticmethod
    def read(environment: Mapping[str, str] | None = None) -> "Settings":
        """Reads the environment.

        Args:
            environment: Instead of the process's own.

        Raises:
            ConfigError: if no policy is named, or a word is not known.
            CheckpointError: if the policy cannot be used.
        """
        env = os.environ if environment is None else environment
        combine = env.get(COMBINE, "median")
        if combine not in COMBINATIONS:
            raise ConfigError(
                f"Expected {COMBINE} in {sorted(COMBINATIONS)}, got {combine!r}.{nearest(combine, [*COMBINATIONS])}"
            )
        return Settings(
            policy=_in_process[-1] if _in_process else named_policy(env),
            compression=env.get(COMPRESSION) or None,
            combine=combine,
            per_request=_switch(env, PER_REQUEST),
            signals=_switch(env, SIGNALS),
        )


@contextmanager
def use(policy: Policy) -> Iterator[Policy]:
    """Inside the block, engines built in this process take this policy in place of the one that SPECKV_POLICY names.

    The engine must live in this process, too: `VLLM_ENABLE_V1_MULTIPROCESSING=0`.
    """
    _in_process.append(policy)
    try:
        yield policy
    finally:
        _in_process.pop()


def _switch(environment: Mapping[str, str], name: str) -> bool:
    word = environment.get(name, "0")
    if word not in ("0", "1"):
        raise ConfigError(f"Expected {name} to be 0 or 1, got {word!r}.")
    return word == "1"
