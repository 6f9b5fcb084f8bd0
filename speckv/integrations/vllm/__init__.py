# SPDX-License-Identifier: Apache-2.0
"""vLLM under a policy: schedulers and a proposer that vLLM constructs by name.

    SPECKV_POLICY=mine.speckv vllm serve ... --scheduler-cls speckv.integrations.vllm.SpecKVAsyncScheduler

vLLM is imported only when a scheduler is requested (docs/integrations/vllm.md).
"""

from typing import Any

from speckv.integrations.vllm.proposer import SpecKVNgramProposer
from speckv.integrations.vllm.sessions import EnvironmentSettings, use

__all__ = ["EnvironmentSettings", "SpecKVAsyncScheduler", "SpecKVNgramProposer", "SpecKVScheduler", "use"]

_made: dict[str, type] = {}


def __getattr__(name: str) -> Any:
    """Creates `SpecKVScheduler`, for passes that do not overlap, and `SpecKVAsyncScheduler`, for any."""
    if name not in ("SpecKVScheduler", "SpecKVAsyncScheduler"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name not in _made:
        from speckv.integrations.vllm.scheduler import make_scheduler

        if name == "SpecKVScheduler":
            from vllm.v1.core.sched.scheduler import Scheduler as Base
        else:
            from vllm.v1.core.sched.async_scheduler import AsyncScheduler as Base
        _made[name] = make_scheduler(Base, name, overlaps=name == "SpecKVAsyncScheduler")
    return _made[name]
