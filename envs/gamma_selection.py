# SPDX-License-Identifier: Apache-2.0
"""The environment of one request: choose how many tokens to draft before each decode step."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray

from envs.core import STEP_INFO, Core, RewardOptions, Settings
from speckv.cost import CostTable
from speckv.errors import ConfigError
from speckv.replay import ReplayStep
from speckv.traces import TraceSet
from speckv.types import FloatArray

_SLOT = np.zeros(1, np.int64)


class GammaSelectionEnv(gym.Env[FloatArray, np.int64]):
    """Chooses the speculation length gamma before every decode step of a recorded request.

    ## Description
    A large target model emits a text. Before each of its passes a small draft model may propose some tokens; the target
    judges them all in that one pass, keeps the longest prefix that it agrees with and adds a token of its own. The
    text is the same whatever is drafted; the time is not: drafting too little wastes target passes, drafting too much
    wastes draft passes. The best length depends on the text, the draft's certainty and what the passes cost.

    The environment replays recordings of real models: which tokens are accepted is known exactly for every action, and
    time comes from a cost table. Nothing is simulated but the clock.

    ## Action space
    `Discrete(gamma_max + 1)`: the number of tokens to draft; 0 is plain decoding. Drafting stops early at a drafted end
    of text, and at the token budget.

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
    `reward` names a function of `envs.rewards`; `reward_options` goes to it, and `reward_scale` multiplies the result.

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
    ```python
    import gymnasium as gym
    import envs

    env = gym.make("SpecKV/GammaSelection-v0", traces="qwen2.5-coder-greedy", cost="cpu-2core", compressions=["nf4"])
    ```

    ## Version history
    * v0: first release.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 4}  # noqa: RUF012 (declared so by Gymnasium)

    def __init__(
        self,
        *,
        traces: str | Path | TraceSet = "qwen2.5-coder-greedy",
        cost: str | Path | CostTable = "cpu-2core",
        split: str | None = "train",
        compressions: Sequence[str] | None = None,
        tasks: Sequence[str] | None = None,
        gamma_max: int = 16,
        reward: str = "throughput",
        reward_options: RewardOptions | None = None,
        reward_scale: float = 1.0,
        budget: int | None = None,
        acceptance: str = "recorded",
        render_mode: str | None = None,
    ) -> None:
        """Loads the recordings and the times.

        Args:
            traces: A shipped trace's name, a file, or a trace set.
            cost: A shipped cost table's name, a file, or a table.
            split: "train", "test", or None for both.
            compressions: Which to keep, all if None.
            tasks: Which to keep, all if None.
            gamma_max: Greatest action, at most the recording's.
            reward: Name of a reward.
            reward_options: Its options.
            reward_scale: Multiplies every reward.
            budget: Token budget, at most the recording's, which is the default.
            acceptance: "recorded", or "rejection" to draw acceptances anew for each episode of a sampled text.
            render_mode: "ansi" renders the last step as a line of text.

        Raises:
            ConfigError: if a setting is out of range.
            TraceError: if there is no such trace, or nothing in it matches.
            CostTableError: if there is no such table, or it lacks a compression.
        """
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ConfigError(f"Expected a render mode among {self.metadata['render_modes']}, got {render_mode!r}.")
        settings = Settings(
            traces=traces,
            cost=cost,
            split=split,
            compressions=compressions,
            tasks=tasks,
            gamma_max=gamma_max,
            reward=reward,
            reward_options=reward_options,
            reward_scale=reward_scale,
            budget=budget,
            acceptance=acceptance,
        )
        self.core = Core(settings, 1)
        self.render_mode = render_mode
        self.observation_space = self.core.observation_space()
        self.action_space = self.core.action_space()
        self._last: ReplayStep | None = None

    @property
    def traces(self) -> TraceSet:
        """The selection that is replayed."""
        return self.core.traces

    def set_lambda(self, values: Mapping[str, float]) -> None:
        """Sets the reward's lambda: compression -> tokens a second."""
        self.core.reward.set_lambda(values)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[FloatArray, dict[str, Any]]:
        """Starts an episode.

        Args:
            seed: Of the environment's generator; None goes on with the present one.
            options: {"sequence": index} picks the sequence.
        """
        super().reset(seed=seed)
        observation = self.core.start(_SLOT, [self.np_random], options)[0]
        self._last = None
        return observation, self._scalars(self.core.sequence_info(_SLOT))

    def step(self, action: np.int64) -> tuple[FloatArray, SupportsFloat, bool, bool, dict[str, Any]]:
        """Drafts up to `action` tokens, lets the target judge them, and emits what it agrees with."""
        if not self.core.batch.running[0]:
            raise ResetNeeded("Expected a running episode: call reset() first, and again after an episode has ended.")
        if not self.action_space.contains(action):
            raise ConfigError(f"Expected an action in {self.action_space}, got {action!r}.")
        step, rewards = self.core.step([action])
        self._last = step
        terminated, truncated = bool(step.terminated[0]), bool(step.truncated[0])
        info = self._scalars({name: getattr(step, name) for name in STEP_INFO})
        if terminated or truncated:
            info["decode"] = self._scalars(self.core.episode_sums(_SLOT))
        return self.core.batch.observe()[0], float(rewards[0]), terminated, truncated, info

    def render(self) -> str | None:
        """Returns one line on the last step, if `render_mode` is "ansi"."""
        if self.render_mode is None:
            gym.logger.warn('Expected render_mode="ansi" at construction, got none: nothing is rendered.')
            return None
        batch = self.core.batch
        sequence = self.core.traces.sequences[int(batch.sequence[0])]
        where = f"{sequence.compression} {sequence.prompt_id}: {batch.history.emitted[0]}/{batch.budget} tokens"
        if self._last is None:
            return where
        drafted, accepted, seconds = (getattr(self._last, n)[0] for n in ("num_drafted", "num_accepted", "seconds"))
        return f"{where}, drafted {'+' * accepted}{'-' * (drafted - accepted)} in {seconds * 1e3:.1f} ms"

    @staticmethod
    def _scalars(values: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        return {name: value.tolist()[0] for name, value in values.items()}
