# SPDX-License-Identifier: Apache-2.0
"""`speckv profile prompts=FILE out=traces.parquet`."""

import logging
import sys
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from speckv.commands.app import plain
from speckv.decoding import SamplingConfig
from speckv.models.device import use_threads
from speckv.models.pair import choose_pair
from speckv.profiling.lookup import record_lookup, save_new
from speckv.profiling.prompts import Prompt, read_prompts
from speckv.profiling.shards import ProfilePlan, RecordingProgress, record_traces
from speckv.traces import TraceSet, find_traces

logger = logging.getLogger(__name__)


def run(config: DictConfig) -> None:
    """Records traces as configured."""
    use_threads(config.threads)
    prompts = read_prompts(config.prompts)
    if config["from"] is not None:
        recorded = TraceSet.load(find_traces(config["from"]))
        _log_result(Path(config.out), save_new(_of_lookup(recorded, prompts, config), Path(config.out)))
        return
    plan = ProfilePlan(
        pair=choose_pair(plain(config.model)),
        compressions=tuple(config.compressions),
        sampling=SamplingConfig(**config.sampling),
        max_new_tokens=config.max_new_tokens,
        max_prompt_tokens=config.max_prompt_tokens,
        per_task={str(split): int(count) for split, count in config.per_task.items() if count is not None},
        skip={str(split): int(count) for split, count in config.skip.items()},
        batch_size=config.batch_size,
        notes=config.notes,
        date=str(config.date or ""),
    )
    with _Bar() as bar:
        traces = record_traces(plan, prompts, Path(config.out), on_progress=bar.show)
    _log_result(Path(config.out), traces)


def _of_lookup(recorded: TraceSet, prompts: list[Prompt], config: DictConfig) -> TraceSet:
    kept = recorded.select(compressions=[name for name in config.compressions if name in recorded.compressions])
    return record_lookup(kept, prompts, choose_pair(plain(config.model)), notes=config.notes)


def _log_result(out: Path, traces: TraceSet) -> None:
    tokens = sum(len(s.tokens) for s in traces.sequences)
    logger.info("%s: %d sequences, %d tokens, sha256 %s", out, len(traces.sequences), tokens, traces.sha256[:12])


class _Bar:
    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
        self._progress = Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True))
        self._task = self._progress.add_task("recording", total=None)

    def __enter__(self) -> "_Bar":
        if sys.stderr.isatty():
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, recorded: RecordingProgress) -> None:
        left = f"{recorded.seconds_left:.0f} s left" if recorded.tokens_per_s else "first batch"
        text = f"{recorded.label}: {recorded.tokens_per_s:.1f} tokens/s, {left}"
        self._progress.update(self._task, description=text, completed=recorded.done, total=recorded.total)
        if not sys.stderr.isatty():
            logger.info("%s, %d/%d", text, recorded.done, recorded.total)
