# SPDX-License-Identifier: Apache-2.0
"""TensorBoard events, and callbacks that evaluate, save and report before each rollout, when the state is small."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.image import imread
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from speckv.agents.rl.export import export_policy
from speckv.agents.runs import checkpoint
from speckv.agents.runs.checkpoint import LearnerProgress
from speckv.agents.runs.console import ProgressBar, StopRequest
from speckv.agents.runs.environments import REWARDS_WITH_LAMBDA, LearnerEnvironment, LiveEnvironment, ReplayEnvironment
from speckv.agents.runs.requests import DecodedRequest, summarise
from speckv.agents.runs.run_folder import BEST, LAST, RunFolder
from speckv.agents.runs.settings import TrainSettings
from speckv.agents.runs.task import Score, Validator
from speckv.evaluation.text import format_rate
from speckv.runtime.learned import controller_of
from speckv.types import Controller

_TEXTS = ("agent", "cost", "hidden", "reward", "traces")
_RATES = (
    *("clip_range", "discount", "entropy_coef", "exploration_fraction", "final_exploration", "gae_lambda"),
    "learning_rate",
)
_COUNTS = (
    *("batch_size", "buffer_size", "gamma", "gradient_steps", "learning_starts", "lstm_hidden", "num_envs"),
    *("num_epochs", "num_quantiles", "num_steps", "return_steps", "seed", "target_interval", "total_steps"),
)
HYPERPARAMETERS: Mapping[str, str | int | float] = dict(
    sorted((dict.fromkeys(_TEXTS, "") | dict.fromkeys(_RATES, -1.0) | dict.fromkeys(_COUNTS, -1)).items())
)
"""Key -> value of a run without it. Every run has all keys, because TensorBoard hides a key that the first run of a
folder lacks."""

LAYOUT: Mapping[str, Mapping[str, list[str]]] = {
    "Against the best fixed gamma": {
        "throughput on validation prompts (tokens/s)": ["eval/throughput", "eval/best_fixed_throughput"],
        "speed-up over the best fixed gamma": ["eval/speedup_vs_best_fixed.*"],
        "speed-up over plain decoding": ["eval/speedup_vs_ar"],
    },
    "What it chooses": {
        "mean gamma": ["eval/mean_gamma"],
        "tokens a step": ["eval/tokens_per_step"],
        "acceptance rate": ["eval/acceptance_rate"],
    },
    "Rollouts": {"throughput (tokens/s)": ["rollout/throughput"], "lambda (tokens/s)": ["rollout/lambda.*"]},
}
"""Custom scalar charts: title -> name -> regular expressions of tags."""


class RunWriter(KVWriter):
    """Writes TensorBoard events; those from `purge_step` on, which a run that was cut off may have left, are hidden."""

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        self._writer = SummaryWriter(str(folder), purge_step=purge_step)

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Writes the scalars among Stable-Baselines3's records."""
        for key, value in key_values.items():
            if "tensorboard" not in (key_excluded.get(key) or ()) and isinstance(value, int | float | np.number):
                self._writer.add_scalar(key, value, step)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Writes scalars."""
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)

    def gamma_histogram(self, counts: NDArray[np.float64], step: int, tag: str = "eval/gamma") -> None:
        """Writes how many decisions chose each gamma."""
        gammas = np.arange(len(counts))
        self._writer.add_histogram_raw(
            tag,
            min=float(gammas[counts > 0].min(initial=len(counts))),
            max=float(gammas[counts > 0].max(initial=0)),
            num=int(counts.sum()),
            sum=float(counts @ gammas),
            sum_squares=float(counts @ gammas**2),
            bucket_limits=(gammas + 0.5).tolist(),
            bucket_counts=counts.tolist(),
            global_step=step,
        )

    def hyperparameters(self, values: Mapping[str, str | int | float], metrics: Mapping[str, float], step: int) -> None:
        """Writes the run's settings, under a fixed set of keys, beside its final figures."""
        settings = {key: values.get(key, absent) for key, absent in HYPERPARAMETERS.items()}
        # What `SummaryWriter.add_hparams` does, without its folder inside the folder.
        for summary in hparams(settings, dict(metrics)):  # type: ignore[no-untyped-call]
            self._writer._get_file_writer().add_summary(summary)  # type: ignore[no-untyped-call]
        self.scalars(metrics, step)

    def layout(self) -> None:
        """Writes the charts of `LAYOUT`."""
        charts = {title: {name: ["Multiline", tags] for name, tags in rows.items()} for title, rows in LAYOUT.items()}
        self._writer.add_custom_scalars(charts)

    def evaluation(self, table: str, pictures: Mapping[str, Path], step: int) -> None:
        """Writes the printed comparison and its pictures, tag -> PNG file."""
        indented = "".join(f"    {line}\n" for line in table.splitlines())  # preformatted text in Markdown
        self._writer.add_text("evaluation", indented, step)
        for number, (tag, path) in enumerate(pictures.items(), 1):  # TensorBoard sorts by tag
            self._writer.add_image(f"evaluation/{number}_{tag}", imread(path), step, dataformats="HWC")

    def close(self) -> None:
        """Writes what is buffered."""
        self._writer.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitorContext:
    """Inputs of a monitor; `provenance` and `deployment` go into every stored policy."""

    settings: TrainSettings
    folder: RunFolder
    writer: RunWriter
    bar: ProgressBar
    request: StopRequest
    progress: LearnerProgress
    provenance: Mapping[str, object]
    deployment: Mapping[str, Any] = field(default_factory=dict)


class Monitor(BaseCallback):
    """Saves and reports one learner, and stops it after a signal."""

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
            # By default it logs every few episodes, which with many environments is at every step.
            self.model.dump_logs()
        self.logger.dump(self.num_timesteps)

    def _checkpoint(self) -> None:
        checkpoint.save(self._context.folder / LAST, self.model, self._learner_env.state, self._progress)

    def _controller(self) -> Controller:
        return controller_of(export_policy(self.model, gamma_max=self._learner_env.gamma_max))

    def _store(self, controller: Controller) -> None:
        context, step = self._context, self.num_timesteps
        context.folder.save_policy(controller, {**context.provenance, "step": step}, **context.deployment)

    def _move_lambda(self, achieved: Mapping[str, float]) -> None:
        rates, decay = self._progress.rates, self._context.settings.reward.lambda_decay
        for name, rate in achieved.items():
            rates[name] = decay * rates[name] + (1 - decay) * rate if name in rates else rate
        if self._context.settings.reward.name in REWARDS_WITH_LAMBDA:
            self._learner_env.state.set_lambda(rates)


class ReplayMonitor(Monitor):
    """Evaluates on validation prompts every so many steps and keeps the best policy."""

    def __init__(self, env: ReplayEnvironment, validator: Validator, context: MonitorContext) -> None:
        super().__init__(env, context)
        context.writer.layout()
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
