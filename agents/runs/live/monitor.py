# SPDX-License-Identifier: Apache-2.0
"""What happens between the updates of a live learner: it is saved, exported, shown, and stopped where a signal came."""

from collections.abc import Mapping

from stable_baselines3.common.callbacks import BaseCallback

from agents.rl.export import export_policy
from agents.runs import checkpoint
from agents.runs.checkpoint import Progress
from agents.runs.console import InterruptedTraining, ProgressBar, StopRequest
from agents.runs.live.decoded import Decoded, summarise
from agents.runs.live.environment import RecordedRequests
from agents.runs.run_folder import LAST, POLICY, RunFolder
from agents.runs.tensorboard import RunWriter


class LiveMonitor(BaseCallback):
    """Watches one run. Live steps are slow and updates few, so that everything is done at each of them.

    Args:
        env: What the learner steps.
        folder: Where checkpoints and policies go.
        writer: Where events go.
        bar: What the user sees.
        request: Set by a signal.
        progress: Restored from a checkpoint, or fresh.
        lambda_decay: Share of lambda that survives one rollout.
        provenance: Written into every exported policy.
        recent: Requests that `recent` holds.

    Attributes:
        recent: The last requests.
    """

    def __init__(
        self,
        *,
        env: RecordedRequests,
        folder: RunFolder,
        writer: RunWriter,
        bar: ProgressBar,
        request: StopRequest,
        progress: Progress,
        lambda_decay: float,
        provenance: Mapping[str, str | int | float],
        recent: int,
    ) -> None:
        super().__init__()
        self._env, self._folder, self._writer, self._bar, self._request = env, folder, writer, bar, request
        self.progress, self._decay, self._provenance = progress, lambda_decay, provenance
        self._num_recent, self.recent = recent, list[Decoded]()
        self._rollout = Decoded(number=0, prompt_id="", phase="", arm="")

    def _on_rollout_start(self) -> None:
        self._save()
        if self._request.signum is not None:
            self.logger.dump(self.num_timesteps)
            raise InterruptedTraining(self._request.signum)
        self._rollout = Decoded(number=0, prompt_id="", phase="", arm="")

    def _on_step(self) -> bool:
        (info,), (reward,) = self.locals["infos"], self.locals["rewards"]
        if "outcome" in info:
            self._rollout.add(info["outcome"])
        self._rollout.reward += float(reward)
        self.recent = [*self.recent, *self._env.finished][-self._num_recent :]
        self._env.finished.clear()
        return True

    def _on_rollout_end(self) -> None:
        rollout, name = self._rollout, "live"
        figures = summarise([rollout])
        if rollout.seconds > 0:
            achieved, rates = figures["tokens_per_s"], self.progress.rates
            rates[name] = self._decay * rates[name] + (1 - self._decay) * achieved if name in rates else achieved
            self._env.live.set_lambda(rates[name])
        recent = summarise(self.recent)
        scalars = {f"live/{key}": value for key, value in figures.items()}
        scalars["live/reward"] = rollout.reward / max(rollout.num_steps, 1)
        if self.recent:
            scalars["live/tokens_per_s_recent"] = recent["tokens_per_s"]
        self._writer.scalars(scalars, self.num_timesteps)
        self._bar.update(self.num_timesteps, f"{figures['tokens_per_s']:.2f} tokens/s")
        self._bar.milestone(
            f"{figures['tokens_per_s']:.2f} tokens/s, {figures['tokens_per_step']:.2f} tokens a step, "
            f"{figures['mean_drafted']:.2f} drafted, reward {scalars['live/reward']:.3f} a step; "
            f"request {self._env.number}"
        )

    def _on_training_end(self) -> None:
        self._save()

    def _save(self) -> None:
        provenance = {**self._provenance, "step": self.num_timesteps}
        policy = export_policy(self.model, provenance=provenance, gamma_max=self._env.live.gamma_max)
        policy.save(self._folder / POLICY)
        checkpoint.save(self._folder / LAST, self.model, self._env, self.progress)
