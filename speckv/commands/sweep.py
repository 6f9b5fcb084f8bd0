# SPDX-License-Identifier: Apache-2.0
"""Sweeps: one run for each combination of settings that list several values, and one table of all results."""

import datetime
import hashlib
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig

from speckv.agents.runs.planning import NOTHING_WRITTEN
from speckv.agents.runs.run_folder import LAST
from speckv.commands.app import (
    EXPLAINED,
    MULTIRUN,
    compose_checked,
    explain,
    first_of_sweeps,
    one_line,
    parse_overrides,
    prepare,
    quoted,
    run_explained,
)
from speckv.errors import ConfigError, SpecKVError, device_errors_explained
from speckv.evaluation.bootstrap import Interval
from speckv.evaluation.metrics import ALL
from speckv.evaluation.report import RESULTS
from speckv.evaluation.text import format_interval, format_rate, render_table
from speckv.files import canonical_json, write_atomically

SWEEP_JSON, SWEEP_TEXT = "sweep.json", "sweep.txt"
ERROR = ".error.txt"
"""Ending of the file beside a job's folder that holds the error of the job."""
FORMAT_VERSION = 1
_FREE = re.compile(r"[^\w.,=+-]+")
_LONGEST_NAME = 120
_NOT_IN_NAMES = "hydra.job.config.override_dirname.exclude_keys"


def job_name(overrides: Sequence[str]) -> str:
    """Name of a job's folder; different overrides have different names.

    >>> job_name(["agent=ppo", "reward=time"]), job_name(["data.traces=a/b.parquet"])
    ('agent=ppo,reward=time', 'data.traces=a-b.parquet-bd318e')
    """
    text = ",".join(overrides)
    name = _FREE.sub("-", text).strip("-")[:_LONGEST_NAME]
    return name if name == text else f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run of a sweep; `overrides` are those that differ between jobs."""

    overrides: tuple[str, ...]
    folder: Path

    @property
    def error(self) -> str:
        """The error line of a failed job, or ""."""
        path = error_file(self.folder)
        return path.read_text(encoding="utf-8").strip() if path.is_file() else ""

    @property
    def state(self) -> str:
        """What became of the job; a learner that was interrupted can be resumed."""
        if self.error:
            return "failed"
        if not self.folder.is_dir():
            return "not started"
        if (self.folder / LAST).is_file() and not self.rows():
            return f"interrupted (continue with resume={self.folder})"
        return "finished" if self.rows() else "no result"

    def rows(self) -> list[dict[str, Any]]:
        """Results of the job's controllers or arms; none if it has no evaluation."""
        for read, path in (
            (_rows_of_results, self.folder / "evaluation" / RESULTS),
            (_rows_of_results, self.folder / RESULTS),
            (_rows_of_study, self.folder / "study.json"),
            (_rows_of_live, self.folder / "evaluation" / "live.json"),
        ):
            if path.is_file():
                return list(read(json.loads(path.read_text(encoding="utf-8"))))
        return []


def error_file(folder: Path) -> Path:
    """File with the error of the job that writes into a folder."""
    return folder.with_name(folder.name + ERROR)


def _rows_of_results(content: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    groups = {group["compression"]: group["rows"] for group in content["groups"] if group["task"] == ALL}
    for name in content["entrants"] or content["controllers"]:
        found = {key: next(row for row in rows if row["controller"] == name) for key, rows in groups.items()}
        yield {
            "name": name,
            "over_best_fixed": found[ALL]["geomean_speedup_vs_best_fixed"],
            "by_compression": {key: row["speedup_vs_best_fixed"] for key, row in found.items() if key != ALL},
            "tokens_per_s": found[ALL]["throughput_tokens_per_s"],
        }


def _rows_of_study(content: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for outcome in content["outcomes"]:
        shown = {key: outcome[key] for key in ("name", "over_best_fixed", "by_compression")}
        yield {**shown, "tokens_per_s": None}


def _rows_of_live(content: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    comparison = content.get("comparison")
    if comparison is not None:
        estimate = {"estimate": comparison["x_best_fixed"], "low": None, "high": None}
        rate = comparison["arms"][comparison["learned"]]["tokens_per_s"]
        shown = {"name": comparison["learned"], "over_best_fixed": estimate, "by_compression": {}}
        yield {**shown, "tokens_per_s": rate}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """The jobs of a sweep, in the order in which they run."""

    command: str
    folder: Path
    jobs: tuple[Job, ...]
    constant: tuple[str, ...]
    """Settings that all jobs share."""

    @staticmethod
    def of(command: str, overrides: Sequence[Override], config: DictConfig) -> "Sweep":
        """Plans a sweep; `config` is that of its first job."""
        swept = [override for override in overrides if override.is_sweep_override()]
        values = [[f"{o.get_key_element()}={value}" for value in o.sweep_string_iterator()] for o in swept]
        fixed = {o.get_key_element(): o.value() for o in overrides if o not in swept}
        own = fixed.get("hydra.sweep.dir") or fixed.get("output")
        folder = Path(str(own)) if own else _new_folder(Path(str(config.runs_dir)), command)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"Expected output={folder} to be a new folder for a sweep, but it exists. Name another.")
        jobs = [Job(overrides=one, folder=folder / job_name(one)) for one in itertools.product(*values)]
        return Sweep(command=command, folder=folder, jobs=tuple(jobs), constant=tuple(fixed))

    @property
    def hydra_overrides(self) -> list[str]:
        """Overrides from which each job, also in another process, derives its folder."""
        names = ",".join(quoted(name) for name in self.constant)
        return [f"hydra.sweep.dir={quoted(str(self.folder))}", f"{_NOT_IN_NAMES}=[{names}]"]

    def describe(self) -> str:
        """A table of the jobs."""
        rows = [(" ".join(job.overrides), str(job.folder)) for job in self.jobs]
        return f"{len(self.jobs)} runs, one after another\n\n{render_table(('overrides', 'folder'), rows, num_left=2)}"

    def finish(self) -> bool:
        """Writes and prints the table of what there is; returns whether every job succeeded."""
        record = self.record()
        text = render(record)
        write_atomically(self.folder / SWEEP_JSON, canonical_json(record))
        write_atomically(self.folder / SWEEP_TEXT, text)
        sys.stdout.write(f"\n{text}\nsaved to {self.folder}\n")
        return all(job["state"] == "finished" for job in record["jobs"])

    def record(self) -> dict[str, Any]:
        """The content of `sweep.json`."""
        jobs = []
        for job in self.jobs:
            error, rows = job.error, job.rows()
            about = {"overrides": list(job.overrides), "folder": str(job.folder), "state": job.state}
            jobs.append({**about, "error": error or None, "results": rows})
        return {"format_version": FORMAT_VERSION, "command": self.command, "jobs": jobs}


def _new_folder(runs_dir: Path, command: str) -> Path:
    name = f"sweep-{command}-{datetime.datetime.now().astimezone():%Y%m%d-%H%M%S}"
    numbered = (runs_dir / (name if number == 1 else f"{name}-{number}") for number in itertools.count(1))
    return next(folder for folder in numbered if not folder.exists())


def render(record: Mapping[str, Any]) -> str:
    """The table of a sweep, from the content of `sweep.json`."""
    results = [(job, row) for job in record["jobs"] for row in job["results"] if job["state"] == "finished"]
    compressions = list(dict.fromkeys(name for _, row in results for name in row["by_compression"]))
    compressions = compressions if len(compressions) > 1 else []
    rows = []
    for job, row in results:
        alone = len(job["results"]) == 1
        by_compression = [_interval(row["by_compression"].get(name)) for name in compressions]
        rate = "" if row["tokens_per_s"] is None else format_rate(row["tokens_per_s"])
        label = " ".join([*job["overrides"], *([] if alone else [row["name"]])])
        rows.append([label, _interval(row["over_best_fixed"]), *by_compression, rate])
    lines = [render_table(("run", "x best fixed", *compressions, "tokens/s"), rows)] if rows else []
    if compressions:
        lines.append("x best fixed: geometric mean over compressions. Brackets: 95 % bootstrap intervals over prompts.")
    for job in record["jobs"]:
        if job["state"] != "finished":
            lines.append(f"{job['state']}: {' '.join(job['overrides'])}{': ' + job['error'] if job['error'] else ''}")
    return "\n".join(lines) + "\n"


def _interval(content: Mapping[str, Any] | None) -> str:
    return format_interval(Interval(**content)) if content is not None else ""


def run_program(
    config_name: str,
    arguments: Sequence[str],
    check: Callable[[DictConfig, Sequence[str]], None],
    job: Callable[[], object],
) -> None:
    """Checks the arguments as in `prepare`, then lets Hydra, which reads `sys.argv`, run the job or the jobs."""
    arguments = prepare(arguments, config_name, check)
    sys.argv = [f"speckv {config_name}", *arguments]
    if set(arguments) & set(MULTIRUN):
        overrides = parse_overrides([argument for argument in arguments if not argument.startswith("-")])
        if any(override.is_sweep_override() for override in overrides):
            config = compose_checked(config_name, first_of_sweeps(arguments))
            sweep = Sweep.of(config_name, overrides, config)
            first = next(k for k, argument in enumerate(arguments) if "=" in argument and argument[0] != "-")
            sys.argv[1 + first : 1 + first] = sweep.hydra_overrides  # beside the others, as argparse needs them
            run_sweep(sweep, job, dry_run=bool(config.get("dry_run")))
            return
    job()


def run_sweep(sweep: Sweep, job: Callable[[], object], *, dry_run: bool) -> None:
    """Runs the jobs, and prints the table also if they are interrupted; exit status 2 if one failed."""
    if dry_run:
        sys.stdout.write(f"{sweep.describe()}\n\n{NOTHING_WRITTEN}\n")
        return
    sys.stdout.write(f"{sweep.describe()}\n")
    complete = False
    try:
        job()
    finally:
        complete = sweep.finish()
    if not complete:
        sys.exit(EXPLAINED)


def run_job(config: DictConfig, action: Callable[[], None]) -> None:
    """Runs one job. In a sweep it writes into its own folder, and an error ends it and not the sweep."""
    hydra = HydraConfig.get()
    shared = set(hydra.job.config.override_dirname.exclude_keys)
    swept = [override for override in hydra.overrides.task if override.partition("=")[0] not in shared]
    if hydra.mode != RunMode.MULTIRUN or not swept:
        run_explained(action)
        return
    folder = Path(hydra.sweep.dir) / job_name(swept)
    config.output = str(folder)
    sys.stdout.write(f"\n{' '.join(swept)}\n")

    def guarded() -> None:
        try:
            with device_errors_explained():
                action()
        except SpecKVError as error:
            write_atomically(error_file(folder), one_line(error) + "\n")
            explain(error)

    run_explained(guarded)
