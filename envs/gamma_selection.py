# SPDX-License-Identifier: Apache-2.0
"""Choose how many tokens to draft: before each decode step, or once a request."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs

from speckv.envs.core import ReplayEnv
from speckv.envs.vector import ReplayVectorEnv
from speckv.errors import ConfigError
from speckv.types import FloatArray


class GammaSelectionEnv(ReplayEnv):
    """Chooses the speculation length gamma before every decode step of a recorded request.

    ## Description
    A large target model emits a text. Before each of its passes a small draft model may propose some tokens; the target
    verifies them all in that one pass, keeps the longest prefix that it agrees with and adds a token of its own. The
    text is the same whatever is drafted, but the time is not: drafting too little wastes target passes, drafting too
    much wastes draft passes. The best length depends on the text, the draft's certainty and what the passes cost.

    The environment replays recordings of real models: which tokens are accepted is known exactly for every action, and
    time comes from a cost table. Nothing is simulated but the clock.

    ## Action space
    `Discrete(gamma_max + 1)`: the number of tokens to draft; 0 is plain decoding. Drafting stops early at a drafted end
    of text, at the token budget, and where the draft has nothing to propose.

    ## Observation space
    `Box(17,)`, float32; the past alone. "Tested" tokens are the accepted ones and the first rejected one.

    | Num | Observation | Unit | Min | Max |
    |-----|-------------|------|-----|-----|
    | 0 | Draft's mean entropy over the tested tokens of the last drafting step | nats | 0 | 12 |
    | 1 | Draft's greatest entropy over them | nats | 0 | 12 |
    | 2 | Draft's mean confidence (top-1 probability) over them | 1 | 0 | 1 |
    | 3 | Draft's least confidence over them | 1 | 0 | 1 |
    | 4 | Draft's mean margin (top-1 minus top-2 probability) over them | 1 | 0 | 1 |
    | 5 | Accepted over drafted tokens in the last drafting step | 1 | 0 | 1 |
    | 6 | Tokens drafted in the previous step, over 16 | 1 | 0 | 1 |
    | 7 | Accepted over tested tokens, decayed by 0.9 a step, with a prior of 4 tokens at 0.7 | 1 | 0 | 1 |
    | 8 | Accepted length of drafting steps, averaged with decay 0.9, over 16 | 1 | 0 | 1 |
    | 9 | Draft's confidence at the last tested token | 1 | 0 | 1 |
    | 10 | Target's entropy at the newest emitted token | nats | 0 | 12 |
    | 11 | Target's confidence there | 1 | 0 | 1 |
    | 12 | Cost ratio: one draft pass over one target pass | 1 | 0 | 2 |
    | 13 | Bits of one weight of the target, over 16 | 1 | 0 | 1 |
    | 14 | Emitted tokens over the token budget | 1 | 0 | 1 |
    | 15 | Tokens left in the budget, at most 64, over 64 | 1 | 0 | 1 |
    | 16 | Emitted tokens that the draft has not read, the newest left out, at most 16, over 16 | 1 | 0 | 1 |

    Before the first drafting step 0 and 1 are 0, 2 to 4 and 9 are 1, 5 is 0.7, and 8 is 7/3 tokens. The names and the
    exact definitions are in `speckv.observation.SCHEMA`.

    ## Rewards
    `reward` names a reward of `speckv.envs.rewards`, or is a function of one's own; `reward_options` goes to a named
    one, and `reward_scale` multiplies the result.

    | Name | Value of a step | Meant for |
    |------|-----------------|-----------|
    | `throughput` (default) | tokens a second, over those of plain decoding | discount 0 |
    | `time` | minus its seconds, over those of one plainly decoded token | discount 1 |
    | `lambda_throughput` | tokens - lambda * seconds; `set_lambda` moves lambda | any discount |
    | `tokens_minus_cost` | tokens - c * drafted tokens; c a number or "auto" | discount 0 |
    | `tokens` | tokens | ablation |

    Time includes the cost table's time for deciding.

    ## Starting state
    A recorded sequence, drawn uniformly with the environment's generator; its first token has been emitted by the
    prefill, and both models have read the prompt. `reset(options={"sequence": index})` picks one instead.

    ## Episode end
    1. Termination: the text ends with the target's end of text.
    2. Truncation: the token budget is used up. Episodes are never cut by their number of steps.

    ## Info
    `reset` gives `sequence` (index into `traces.sequences`), `prompt_id`, `task` and `compression`. `step` gives
    `num_drafted`, `num_accepted`, `num_emitted` and `seconds`, and at the episode's end `decode`: the sums `return`,
    `num_steps`, `num_tokens`, `num_drafted`, `num_accepted`, `num_tested` and `seconds`.

    ## Arguments
    Those of `speckv.envs.core.ReplayEnvSettings`, and `render_mode`: None, "ansi" or "rgb_array".

    ```python
    import gymnasium as gym
    import speckv.envs

    env = gym.make("SpecKV/GammaSelection-v0", traces="qwen2.5-coder-greedy", cost="cpu-2core", compressions=["nf4"])
    ```

    ## Version history
    * v0: first release.
    """


class GammaSelectionVectorEnv(ReplayVectorEnv):
    """Many `GammaSelectionEnv` at once, with the same actions, observations, rewards and episode ends."""


class PerRequest(gym.Wrapper[FloatArray, np.int64, FloatArray, np.int64], RecordConstructorArgs):
    """Wraps `SpecKV/GammaSelection-v0` so that an episode is one action: gamma for the whole request.

    The reward is summed over decode steps, so a ConfigError refuses `throughput`, a ratio, and another environment.
    """

    def __init__(self, env: gym.Env[FloatArray, np.int64]) -> None:
        RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        inner = env.unwrapped
        if not isinstance(inner, GammaSelectionEnv):
            raise ConfigError(f"Expected SpecKV/GammaSelection-v0, got {type(inner).__name__}.")
        if inner.core.reward_name == "throughput":
            raise ConfigError(
                "Expected a reward that adds up over decode steps, such as reward='time', got throughput, a ratio."
            )

    def step(self, action: np.int64) -> tuple[FloatArray, float, bool, bool, dict[str, Any]]:
        """Decodes the whole request with one gamma; terminated and truncated as at its last decode step."""
        total = 0.0
        while True:
            observation, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            if terminated or truncated:
                return observation, total, terminated, truncated, info
