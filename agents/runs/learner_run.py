# SPDX-License-Identifier: Apache-2.0
"""One run of a learner: environments, learner, monitor, from the first step or from a checkpoint."""

from collections.abc import Mapping

import torch
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from agents.rl.hyperparameters import LearnerSettings
from agents.rl.learners import build_learner
from agents.runs import checkpoint
from agents.runs.checkpoint import Progress
from agents.runs.console import Console, catch_signals
from agents.runs.monitor import MonitorSettings, TrainingMonitor
from agents.runs.run_folder import EVENTS, LAST, RunFolder
from agents.runs.settings import EnvSettings, RewardSettings, TrainSettings
from agents.runs.tensorboard import RunWriter
from agents.runs.validation import Validator
from envs import DraftStoppingVectorEnv, GammaSelectionVectorEnv
from envs.sb3_bridge import SB3VecEnv
from speckv.cost import CostTable
from speckv.runtime.stored import load_controller
from speckv.traces import TraceSet
from speckv.types import Controller

REWARDS_WITH_LAMBDA = ("lambda_throughput", "tokens_minus_cost")
_NEVER = 10**12
"""More episodes than any run has."""


def make_environment(
    traces: TraceSet, cost: CostTable, env: EnvSettings, reward: RewardSettings, num_envs: int
) -> SB3VecEnv:
    """Makes the native vector environment behind Stable-Baselines3's interface.

    Raises:
        ConfigError: if a setting is unknown or out of range.
    """
    options = {"token_cost": reward.token_cost} if reward.name == "tokens_minus_cost" else None
    kind = DraftStoppingVectorEnv if env.decides == "per_token" else GammaSelectionVectorEnv
    return SB3VecEnv(
        kind(
            num_envs,
            traces=traces,
            cost=cost,
            split=None,
            gamma_max=min(env.gamma_max, traces.metadata.gamma_max),
            reward=reward.name,
            reward_options=options,
            budget=env.budget,
            acceptance=env.acceptance,
        )
    )


def train_learner(
    agent: LearnerSettings,
    settings: TrainSettings,
    env: SB3VecEnv,
    folder: RunFolder,
    validator: Validator,
    console: Console,
    *,
    provenance: Mapping[str, str | int | float],
    resume: bool,
) -> Controller:
    """Trains to the end, saving as it goes.

    Args:
        agent: Hyper-parameters.
        settings: Of the run.
        env: From `make_environment`.
        folder: Takes checkpoints, policies, rows and events.
        validator: Chooses the best checkpoint.
        console: Takes progress.
        provenance: Written into every exported policy.
        resume: Whether to continue from the folder's last checkpoint.

    Returns:
        The policy that did best on validation prompts.

    Raises:
        InterruptedTraining: after saving, if a signal came.
        CheckpointError: if there is nothing to continue from.
    """
    torch.set_num_threads(settings.threads)
    model = build_learner(agent, env, settings.seed, hide=settings.env.hide)
    progress = Progress(next_evaluation=0, best_score=None, best_step=0, rates={})
    if resume:
        progress = checkpoint.load(folder / LAST, model, env.envs)
        folder.drop_evaluations_after(model.num_timesteps)
    moves_lambda = settings.reward.name in REWARDS_WITH_LAMBDA
    if moves_lambda:
        env.envs.set_lambda(progress.rates)
    left = agent.total_steps - model.num_timesteps
    if left > 0:
        writer = RunWriter(folder / EVENTS, purge_step=model.num_timesteps + 1 if resume else None)
        writer.layout()
        model.set_logger(Logger(None, [writer]))
        watched = MonitorSettings(
            every_steps=settings.eval.every_steps,
            lambda_decay=settings.reward.lambda_decay,
            moves_lambda=moves_lambda,
            provenance=provenance,
        )
        with (
            catch_signals() as request,
            console.progress(agent.total_steps, model.num_timesteps) as bar,
        ):
            monitor = TrainingMonitor(
                watched,
                env=env,
                validator=validator,
                folder=folder,
                writer=writer,
                bar=bar,
                request=request,
                progress=progress,
            )
            try:
                # The monitor writes the log of a learner that counts episodes for it, not rollouts.
                every = _NEVER if isinstance(model, OffPolicyAlgorithm) else 1
                model.learn(left, callback=monitor, log_interval=every, reset_num_timesteps=not resume)
            finally:
                writer.close()
    return load_controller(folder.path)
