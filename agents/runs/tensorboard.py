# SPDX-License-Identifier: Apache-2.0
"""TensorBoard events of one run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.image import imread
from numpy.typing import NDArray
from stable_baselines3.common.logger import KVWriter
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

HYPERPARAMETERS: Mapping[str, str | int | float] = {
    "agent": "",
    "batch_size": -1,
    "buffer_size": -1,
    "clip_range": -1.0,
    "cost": "",
    "discount": -1.0,
    "entropy_coef": -1.0,
    "exploration_fraction": -1.0,
    "final_exploration": -1.0,
    "gae_lambda": -1.0,
    "gamma": -1,
    "gradient_steps": -1,
    "hidden": "",
    "learning_rate": -1.0,
    "learning_starts": -1,
    "lstm_hidden": -1,
    "num_envs": -1,
    "num_epochs": -1,
    "num_quantiles": -1,
    "num_steps": -1,
    "return_steps": -1,
    "reward": "",
    "seed": -1,
    "target_interval": -1,
    "total_steps": -1,
    "traces": "",
}
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
"""Custom scalar charts, throughput beside that of the best fixed gamma first: title -> name -> regular expressions of
tags."""


class RunWriter(KVWriter):
    """Writes Stable-Baselines3's records and our own.

    Args:
        folder: Of the events.
        purge_step: Hides events from this environment step on, which a run that was cut off may have left.
    """

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
        for tag, path in pictures.items():
            self._writer.add_image(f"evaluation/{tag}", imread(path), step, dataformats="HWC")

    def close(self) -> None:
        """Writes what is buffered."""
        self._writer.close()
