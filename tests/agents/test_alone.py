# SPDX-License-Identifier: Apache-2.0
"""Controllers with a way of their own for a request alone decide as they do among others."""

import numpy as np
import pytest

from speckv.agents.registry import AGENTS
from speckv.observation import SCHEMA, STOPPING_SCHEMA
from speckv.types import OnlineLearner, StoppingController
from tests.agents.test_agents_contract import make

NAMES = sorted(name for name, agent in AGENTS.items() if not agent.in_environment)


@pytest.mark.parametrize("name", NAMES)
def test_one_row_alone_is_that_row_of_a_batch(name: str) -> None:
    _, controller = make(name)
    if isinstance(controller, OnlineLearner):
        pytest.skip("an online learner has one way only")
    rng = np.random.default_rng(2)
    rows = rng.uniform(STOPPING_SCHEMA.low, STOPPING_SCHEMA.high, (400, STOPPING_SCHEMA.size)).astype(np.float32)
    rows[:, SCHEMA.size] = rng.integers(0, 17, 400) / 16.0
    for row in rows:
        controller.reset()
        batch_gamma = controller.act_batch(row[np.newaxis, : SCHEMA.size])[0]
        batch_more = controller.go_on_batch(row[np.newaxis])[0] if isinstance(controller, StoppingController) else None
        controller.reset()
        assert controller.act(row[: SCHEMA.size]) == batch_gamma
        if isinstance(controller, StoppingController):
            assert controller.go_on(row) == batch_more
