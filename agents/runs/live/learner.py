# SPDX-License-Identifier: Apache-2.0
"""A learner of Stable-Baselines3 in one live environment: untrained, from a trained policy or from a checkpoint."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import DummyVecEnv

from agents.rl.hyperparameters import LearnerSettings
from agents.rl.learners import build_learner, make_learner
from agents.runs import checkpoint
from agents.runs.checkpoint import Progress
from agents.runs.console import Console, StopRequest
from agents.runs.live.decoded import LEARN, MEASURE, Decoded, DecodedLog
from agents.runs.live.environment import RecordedRequests
from agents.runs.live.monitor import LiveMonitor
from agents.runs.live.starting import start_learner
from agents.runs.live.task import LiveTask
from agents.runs.run_folder import LAST, RunFolder
from agents.runs.settings import TrainSettings
from agents.runs.tensorboard import RunWriter
from envs.live import LiveDecodingEnv
from speckv.types import FloatArray


def make_live_environment(task: LiveTask, settings: TrainSettings) -> LiveDecodingEnv:
    """Makes the environment of the learning prompts.

    Raises:
        ConfigError: if a setting is out of range, or the reward is none of the environment's.
    """
    return LiveDecodingEnv(
        engine=task.engine,
        prompts=task.learning,
        cost=task.cost,
        compression=task.compression,
        max_new_tokens=task.max_new_tokens,
        decides=settings.env.decides,
        gamma_max=settings.env.gamma_max,
        reward=settings.reward.name,
    )


class LiveLearner:
    """A learner and its environment; `begin` comes before `learn`.

    Args:
        name: Of the agent.
        agent: Hyper-parameters; one environment.
        settings: Of the run.
        env: From `make_live_environment`.
        log: Takes a line a request.
        source: What to begin with, or None.

    Raises:
        CheckpointError: if the source does not fit.
        SchemaError: if it reads another observation.
    """

    def __init__(
        self,
        name: str,
        agent: LearnerSettings,
        settings: TrainSettings,
        env: LiveDecodingEnv,
        log: DecodedLog,
        *,
        source: Path | None,
    ) -> None:
        self._agent, self._settings, self._log = agent, settings, log
        self.env = RecordedRequests(env, log, name)
        self._vec = DummyVecEnv([lambda: self.env])
        self.progress = Progress(next_evaluation=0, best_score=None, best_step=0, rates={})
        self.recent: list[Decoded] = []
        # Parameters and the observations' scale come from what is stored, or from `begin`.
        zeros: FloatArray = np.zeros(env.observation_space.shape or (), np.float32)
        self.model = make_learner(agent, self._vec, seed=settings.seed, mean=zeros, std=zeros + 1)
        self._measures = source is None
        self.begun_with = "nothing" if source is None else start_learner(self.model, source, env.gamma_max)

    def begin(self, resume: RunFolder | None) -> None:
        """Continues a checkpoint; without one, and without a source, measures the observations with random actions.

        Args:
            resume: Folder of the run to continue, or None.

        Raises:
            CheckpointError: if there is nothing to continue, or it does not fit.
            SpecKVError: as the environment.
        """
        if resume is not None:
            self.progress = checkpoint.load(resume / LAST, self.model, self.env)
            # The request that was being decoded begins anew: neither caches nor clocks can be brought back.
            self.model._last_obs = None
            self._vec._reset_seeds()
            for rate in self.progress.rates.values():
                self.env.live.set_lambda(rate)
            self._log.forget_from(self.env.number)
            self.begun_with = f"step {self.done:,}"
        elif self._measures:
            self.env.phase = MEASURE
            self.model = build_learner(self._agent, self._vec, self._settings.seed)
            self.env.cut_off()
            self.env.phase = LEARN
            self.env.finished.clear()

    @property
    def done(self) -> int:
        """Environment steps so far."""
        return int(self.model.num_timesteps)

    def learn(
        self,
        folder: RunFolder,
        writer: RunWriter,
        console: Console,
        request: StopRequest,
        provenance: Mapping[str, str | int | float],
    ) -> None:
        """Learns to the end, saving at every update.

        Args:
            folder: Takes checkpoints and policies.
            writer: Takes events.
            console: Takes progress.
            request: Set by a signal.
            provenance: Written into every exported policy.

        Raises:
            InterruptedTraining: at the update after a signal, once saved.
            SpecKVError: as the environment; what the last update left is saved.
        """
        left = self._agent.total_steps - self.done
        if left > 0:
            self.model.set_logger(Logger(None, [writer]))
            with console.progress(self._agent.total_steps, self.done) as bar:
                monitor = LiveMonitor(
                    env=self.env,
                    folder=folder,
                    writer=writer,
                    bar=bar,
                    request=request,
                    progress=self.progress,
                    lambda_decay=self._settings.reward.lambda_decay,
                    provenance=provenance,
                    recent=self._settings.live.recent if self._settings.live else 1,
                )
                try:
                    self.model.learn(left, callback=monitor, log_interval=1, reset_num_timesteps=self.done == 0)
                finally:
                    self.env.cut_off()
                    self.recent = monitor.recent
