# SPDX-License-Identifier: Apache-2.0
"""What happens between a learner's updates: evaluation, checkpoints, lambda, logs, and the answer to a signal.

Everything is done where a rollout is about to begin, after an update and before the next step. There the state is
small, and a run that resumes from it equals one that never stopped.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from agents.rl.export import export_policy
from agents.runs import checkpoint
from agents.runs.checkpoint import LearnerProgress
from agents.runs.console import ProgressBar, StopRequest
from agents.runs.environments import REWARDS_WITH_LAMBDA, LearnerEnvironment, LiveEnvironment, ReplayEnvironment
from agents.runs.requests import DecodedRequest, summarise
from agents.runs.run_folder import BEST, LAST, RunFolder
from agents.runs.settings import TrainSettings
from agents.runs.task import Score, Validator
from agents.runs.tensorboard import RunWriter
from speckv.evaluation.text import format_rate
from speckv.runtime.learned import controller_of
from speckv.types import Controller


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitorContext:
    """What a monitor works with.

    Attributes:
        folder: Takes checkpoints, policies and rows.
        progress: Restored from a checkpoint, or fresh.
        provenance: Written into every exported policy.
    """

    settings: TrainSettings
    folder: RunFolder
    writer: RunWriter
    bar: ProgressBar
    request: StopRequest
    progress: LearnerProgress
    provenance: Mapping[str, str | int | float]


class Monitor(BaseCallback):
    """Watches one learner."""

    def __init__(self, env: LearnerEnvironment, context: MonitorContext) -> None:
        super().__init__()
        self._learner_env, self._context = env, context
        self._writer, self._bar, self._progress = context.writer, context.bar, context.progress

    @abstractmethod
    def _begin_rollout(self) -> None: ...

    @abstractmethod
    def _save(self, *, final: bool) -> None: ...

    def _on_rollout_start(self) -> None:
        if isinstance(self.model, OffPolicyAlgorithm):
            self._write_log()
        self._save(final=False)
        if self._context.request.signum is not None:
            self.logger.dump(self.num_timesteps)
        self._context.request.raise_if_set()
        self._begin_rollout()

    def _on_training_end(self) -> None:
        self._save(final=True)

    def _write_log(self) -> None:
        if isinstance(self.model, OffPolicyAlgorithm):
            # Left to itself it would log every few episodes, which with many environments is at every step.
            self.model.dump_logs()
        self.logger.dump(self.num_timesteps)

    def _checkpoint(self) -> None:
        checkpoint.save(self._context.folder / LAST, self.model, self._learner_env.state, self._progress)

    def _controller(self) -> Controller:
        return controller_of(export_policy(self.model, gamma_max=self._learner_env.gamma_max))

    def _store(self, controller: Controller) -> None:
        self._context.folder.save_policy(controller, {**self._context.provenance, "step": self.num_timesteps})

    def _move_lambda(self, achieved: Mapping[str, float]) -> None:
        """Moves lambda, the decayed throughput, to what a rollout achieved, in tokens per second."""
        rates, decay = self._progress.rates, self._context.settings.reward.lambda_decay
        for name, rate in achieved.items():
            rates[name] = decay * rates[name] + (1 - decay) * rate if name in rates else rate
        if self._context.settings.reward.name in REWARDS_WITH_LAMBDA:
            self._learner_env.state.set_lambda(rates)


class ReplayMonitor(Monitor):
    """Evaluates on validation prompts every so many steps and keeps the best policy."""

    def __init__(self, env: ReplayEnvironment, validator: Validator, context: MonitorContext) -> None:
        super().__init__(env, context)
        self._replay, self._validator = env.replay, validator
        self._last_score: Score | None = None
        self._batch = self._replay.envs.core.batch
        names = self._batch.cost.compressions
        self._tokens, self._seconds = np.zeros(len(names)), np.zeros(len(names))
        self._comp_index: NDArray[np.int64] = self._batch.comp_index.copy()
        self._chosen = np.zeros(env.gamma_max + 1)

    def _begin_rollout(self) -> None:
        self._tokens[:], self._seconds[:], self._chosen[:] = 0.0, 0.0, 0.0
        self._comp_index = self._batch.comp_index.copy()

    def _on_step(self) -> bool:
        infos = self._replay.last_infos
        # Environments that ended have begun their next sequence; the step belongs to the one before.
        self._tokens += np.bincount(self._comp_index, infos["num_emitted"], len(self._tokens))
        self._seconds += np.bincount(self._comp_index, infos["seconds"], len(self._seconds))
        self._chosen += np.bincount(self.locals["actions"], minlength=len(self._chosen))
        self._comp_index = self._batch.comp_index.copy()
        return True

    def _on_rollout_end(self) -> None:
        sums = zip(self._batch.cost.compressions, self._tokens, self._seconds, strict=True)
        self._move_lambda({name: float(tokens / seconds) for name, tokens, seconds in sums if seconds > 0})
        rates = self._progress.rates
        scalars = {f"rollout/lambda_{name}": rate for name, rate in rates.items()}
        scalars["rollout/lambda"] = float(np.mean(list(rates.values())))
        scalars["rollout/throughput"] = float(self._tokens.sum() / self._seconds.sum())
        self._writer.scalars(scalars, self.num_timesteps)
        self._writer.gamma_histogram(self._chosen, self.num_timesteps, "rollout/gamma")
        self._bar.update(self.num_timesteps, self._note())

    def _save(self, *, final: bool) -> None:
        if final:
            self._write_log()
        due = final or self.num_timesteps >= self._progress.next_evaluation
        if due:
            self._evaluate()
        if due or self._context.request.signum is not None:
            self._checkpoint()

    def _evaluate(self) -> None:
        step, progress, folder = self.num_timesteps, self._progress, self._context.folder
        every = self._context.settings.eval.every_steps
        progress.next_evaluation = (step // every + 1) * every
        controller = self._controller()
        self._last_score = score = self._validator.score(controller)
        folder.append_evaluation(step, self._validator.grid, score.sums)
        self._writer.scalars(score.scalars(), step)
        self._writer.gamma_histogram(score.sums.gammas.sum(axis=(0, 1)), step)
        if progress.best_score is None or score.speedup_vs_best_fixed > progress.best_score:
            progress.best_score, progress.best_step = score.speedup_vs_best_fixed, step
            self._store(controller)
            checkpoint.save(folder / BEST, self.model, self._learner_env.state, progress, with_replay=False)
        self._bar.update(step, self._note())
        self._bar.milestone(self._line(score))

    def _note(self) -> str:
        score = self._last_score
        if score is None:
            return ""
        return f"{format_rate(score.throughput)} tok/s, x{score.speedup_vs_best_fixed:.3f} best fixed"

    def _line(self, score: Score) -> str:
        parts = ", ".join(f"{name} {value:.3f}" for name, value in score.by_compression.items())
        star = " *" if self._progress.best_step == self.num_timesteps else ""
        return (
            f"validation {format_rate(score.throughput)} tok/s "
            f"(best fixed {format_rate(self._validator.number_to_beat)})  "
            f"x best fixed {score.speedup_vs_best_fixed:.3f} ({parts})  x plain {score.speedup_vs_ar:.3f}  "
            f"mean gamma {score.mean_gamma:.2f}{star}"
        )


class LiveMonitor(Monitor):
    """Saves and reports at every update, because live steps are slow and updates few."""

    def __init__(self, env: LiveEnvironment, context: MonitorContext) -> None:
        super().__init__(env, context)
        self._recorder = env.recorder
        self._rollout = _empty_rollout()

    def _begin_rollout(self) -> None:
        self._rollout = _empty_rollout()

    def _on_step(self) -> bool:
        (info,), (reward,) = self.locals["infos"], self.locals["rewards"]
        if "outcome" in info:
            self._rollout.add(info["outcome"])
        self._rollout.reward += float(reward)
        return True

    def _on_rollout_end(self) -> None:
        rollout, recent = self._rollout, self._recorder.recent
        figures = summarise([rollout])
        if rollout.seconds > 0:
            self._move_lambda({"live": figures["tokens_per_s"]})
        scalars = {f"live/{key}": value for key, value in figures.items()}
        scalars["live/reward"] = rollout.reward / max(rollout.num_steps, 1)
        if recent:
            scalars["live/tokens_per_s_recent"] = summarise(recent)["tokens_per_s"]
        self._writer.scalars(scalars, self.num_timesteps)
        self._bar.update(self.num_timesteps, f"{figures['tokens_per_s']:.2f} tokens/s")
        self._bar.milestone(
            f"{figures['tokens_per_s']:.2f} tokens/s, {figures['tokens_per_step']:.2f} tokens a step, "
            f"{figures['mean_drafted']:.2f} drafted, reward {scalars['live/reward']:.3f} a step; "
            f"request {self._recorder.number}"
        )

    def _save(self, *, final: bool) -> None:  # noqa: ARG002
        self._store(self._controller())
        self._checkpoint()


def _empty_rollout() -> DecodedRequest:
    return DecodedRequest(number=0, prompt_id="", phase="", arm="")
