# SPDX-License-Identifier: Apache-2.0
"""What happens between a learner's updates: evaluation, checkpoints, lambda, logs, and the answer to a signal.

Everything is done where a rollout is about to begin, after an update and before the next step: there the whole state
is small, and a run continued from it cannot be told from one that never stopped.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from agents.rl.export import export_policy
from agents.runs import checkpoint
from agents.runs.checkpoint import Progress
from agents.runs.console import InterruptedTraining, ProgressBar, StopRequest
from agents.runs.run_folder import BEST, LAST, POLICY, RunFolder
from agents.runs.tensorboard import RunWriter
from agents.runs.validation import Score, Validator
from envs.sb3_bridge import SB3VecEnv
from speckv.evaluation.text import format_rate
from speckv.runtime.stored import controller_of


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitorSettings:
    """How the monitor works.

    Attributes:
        every_steps: Environment steps between evaluations.
        lambda_decay: Share of lambda that survives one rollout.
        moves_lambda: Whether the reward reads lambda.
        provenance: Written into every exported policy.
    """

    every_steps: int
    lambda_decay: float
    moves_lambda: bool
    provenance: Mapping[str, str | int | float]


class TrainingMonitor(BaseCallback):
    """Watches one run.

    Args:
        settings: See there.
        env: What the learner steps.
        validator: Scores policies.
        folder: Where checkpoints, policies and rows go.
        writer: Where events go.
        bar: What the user sees.
        request: Set by a signal.
        progress: Restored from a checkpoint, or fresh.
    """

    def __init__(
        self,
        settings: MonitorSettings,
        *,
        env: SB3VecEnv,
        validator: Validator,
        folder: RunFolder,
        writer: RunWriter,
        bar: ProgressBar,
        request: StopRequest,
        progress: Progress,
    ) -> None:
        super().__init__()
        self._settings, self._env, self._validator = settings, env, validator
        self._folder, self._writer, self._bar, self._request = folder, writer, bar, request
        self.progress = progress
        self.last_score: Score | None = None
        self._batch = env.envs.core.batch
        names = self._batch.cost.compressions
        self._tokens, self._seconds = np.zeros(len(names)), np.zeros(len(names))
        self._comp_index: NDArray[np.int64] = self._batch.comp_index.copy()
        self._chosen = np.zeros(env.envs.core.gamma_max + 1)

    def _on_rollout_start(self) -> None:
        if isinstance(self.model, OffPolicyAlgorithm):
            self._write_log()
        self._act_between_updates(final=False)
        self._tokens[:], self._seconds[:], self._chosen[:] = 0.0, 0.0, 0.0
        self._comp_index = self._batch.comp_index.copy()

    def _on_step(self) -> bool:
        infos = self._env.last_infos
        # Environments that ended have begun their next sequence; the step belongs to the one before.
        self._tokens += np.bincount(self._comp_index, infos["num_emitted"], len(self._tokens))
        self._seconds += np.bincount(self._comp_index, infos["seconds"], len(self._seconds))
        self._chosen += np.bincount(self.locals["actions"], minlength=len(self._chosen))
        self._comp_index = self._batch.comp_index.copy()
        return True

    def _on_rollout_end(self) -> None:
        rates, decay = self.progress.rates, self._settings.lambda_decay
        names = self._batch.cost.compressions
        for name, tokens, seconds in zip(names, self._tokens, self._seconds, strict=True):
            if seconds > 0:
                achieved = float(tokens / seconds)
                rates[name] = decay * rates[name] + (1 - decay) * achieved if name in rates else achieved
        if self._settings.moves_lambda:
            self._env.envs.set_lambda(rates)
        scalars = {f"rollout/lambda_{name}": rate for name, rate in rates.items()}
        scalars["rollout/lambda"] = float(np.mean(list(rates.values())))
        scalars["rollout/throughput"] = float(self._tokens.sum() / self._seconds.sum())
        self._writer.scalars(scalars, self.num_timesteps)
        self._writer.gamma_histogram(self._chosen, self.num_timesteps, "rollout/gamma")
        self._bar.update(self.num_timesteps, self._note())

    def _on_training_end(self) -> None:
        self._write_log()
        self._act_between_updates(final=True)

    def _write_log(self) -> None:
        if isinstance(self.model, OffPolicyAlgorithm):
            # Left to itself it would log every few episodes, which with many environments is at every step.
            self.model.dump_logs()
        self.logger.dump(self.num_timesteps)

    def _act_between_updates(self, *, final: bool) -> None:
        due = self.num_timesteps >= self.progress.next_evaluation
        if due or final:
            self._evaluate()
        if due or final or self._request.signum is not None:
            checkpoint.save(self._folder / LAST, self.model, self._env.envs, self.progress)
        if self._request.signum is not None and not final:
            self.logger.dump(self.num_timesteps)
            raise InterruptedTraining(self._request.signum)

    def _evaluate(self) -> None:
        step, progress = self.num_timesteps, self.progress
        every = self._settings.every_steps
        progress.next_evaluation = (step // every + 1) * every
        policy = export_policy(
            self.model,
            provenance={**self._settings.provenance, "step": step},
            gamma_max=self._env.envs.core.gamma_max,
        )
        score = self._validator.score(controller_of(policy))
        self.last_score = score
        self._folder.append_evaluation(step, self._validator.grid, score.sums)
        self._writer.scalars(score.scalars(), step)
        self._writer.gamma_histogram(score.sums.gammas.sum(axis=(0, 1)), step)
        if progress.best_score is None or score.speedup_vs_best_fixed > progress.best_score:
            progress.best_score, progress.best_step = score.speedup_vs_best_fixed, step
            policy.save(self._folder / POLICY)
            checkpoint.save(self._folder / BEST, self.model, self._env.envs, progress, with_replay=False)
        self._bar.update(step, self._note())
        self._bar.milestone(self._line(score))

    def _note(self) -> str:
        if self.last_score is None:
            return ""
        return (
            f"{format_rate(self.last_score.throughput)} tok/s, x{self.last_score.speedup_vs_best_fixed:.3f} best fixed"
        )

    def _line(self, score: Score) -> str:
        parts = ", ".join(f"{name} {value:.3f}" for name, value in score.by_compression.items())
        star = " *" if self.progress.best_step == self.num_timesteps else ""
        return (
            f"validation {format_rate(score.throughput)} tok/s "
            f"(best fixed {format_rate(self._validator.number_to_beat)})  "
            f"x best fixed {score.speedup_vs_best_fixed:.3f} ({parts})  x plain {score.speedup_vs_ar:.3f}  "
            f"mean gamma {score.mean_gamma:.2f}{star}"
        )
