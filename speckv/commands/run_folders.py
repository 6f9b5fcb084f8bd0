# SPDX-License-Identifier: Apache-2.0
"""Run folders with their configs: on which recordings and clock they were trained, and how they were evaluated."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from speckv.commands.app import plain
from speckv.errors import CheckpointError, ConfigError
from speckv.evaluation.compare import NUM_RESAMPLES
from speckv.evaluation.run_facts import CONFIG, read_fact, read_facts

_MATERIAL = ("traces", "compressions", "tasks", "cost")
"""Settings of `learn` that make validation another one than on the run's own recordings and clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What must agree between runs that share a page.

    Attributes:
        cost: Name or path of the cost table.
        batch: Load that it is taken at.
        cost_sha256: Hash of its times there, or "" if none was recorded.
        traces: Name or path of the trace file.
        traces_sha256: Its hash, or "" if none was recorded.
        compressions: Which were kept; None for all.
        tasks: Which were kept; None for all.
    """

    cost: str
    batch: int
    cost_sha256: str
    traces: str
    traces_sha256: str
    compressions: tuple[str, ...] | None
    tasks: tuple[str, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFolder:
    """A folder that holds a controller.

    Attributes:
        path: Where.
        facts: What `run.json` says; empty for a policy's folder.
        config: What `config.yaml` says; empty likewise.
    """

    path: Path
    facts: Mapping[str, object]
    config: Mapping[str, object]

    @staticmethod
    def read(path: Path) -> "RunFolder":
        """Reads a folder.

        Raises:
            CheckpointError: if one of its files is damaged.
        """
        facts = read_facts(path)
        try:
            config = OmegaConf.load(path / CONFIG) if (path / CONFIG).is_file() else OmegaConf.create({})
        except Exception as error:  # the YAML parser has errors of its own, which nobody here can name
            raise CheckpointError(f"{path}: expected a readable {CONFIG}, got: {error}.") from error
        if not isinstance(config, DictConfig):
            raise CheckpointError(f"{path}: expected an object in {CONFIG}. The folder is damaged.")
        return RunFolder(path=path, facts=facts, config=plain(config))

    def terms(self, cost: DictConfig | None, data: DictConfig | None) -> Terms:
        """What the controller is to be judged on.

        Args:
            cost: Settings of the group `cost` in place of the run's, or None.
            data: The same of the group `data`.

        Raises:
            CheckpointError: if neither the folder nor anybody else says it.
        """
        clock = plain(cost) if cost is not None else self._group("cost", "table")
        recordings = plain(data) if data is not None else self._group("data", "traces")
        return Terms(
            cost=str(clock["table"]),
            batch=int(str(clock.get("batch", 1))),
            cost_sha256=read_fact(self.facts, "cost", "sha256") if cost is None else "",
            traces=str(recordings["traces"]),
            traces_sha256=read_fact(self.facts, "traces", "sha256") if data is None else "",
            compressions=_words(recordings.get("compressions")),
            tasks=_words(recordings.get("tasks")),
        )

    def _group(self, name: str, needed: str) -> Mapping[str, object]:
        group = self.config.get(name)
        if not isinstance(group, dict) or needed not in group:
            raise CheckpointError(
                f"{self.path} does not say on which recordings and clock it is to be judged. "
                "Give cost=NAME and data=NAME, such as cost=cpu-2core data=qwen2.5-coder."
            )
        return group

    @property
    def seed(self) -> int:
        """Of the run, and so of the intervals that it was shown with."""
        return int(str(self.config.get("seed", 0)))

    @property
    def num_resamples(self) -> int:
        """Of the bootstrap behind those intervals."""
        group = self.config.get("eval")
        return int(str(group.get("num_resamples", NUM_RESAMPLES))) if isinstance(group, dict) else NUM_RESAMPLES

    @property
    def learned_elsewhere(self) -> bool:
        """Whether it learned, and was validated, on other recordings or another clock than its own."""
        learn = self.config.get("learn")
        return isinstance(learn, dict) and any(learn.get(name) is not None for name in _MATERIAL)

    @property
    def words(self) -> dict[str, str]:
        """What a reader wants to know of the run, as far as it says: label -> value."""
        found = {"Folder": self.path.resolve().name}
        for label, key in (("Agent", "agent"), ("Seed", "seed"), ("Started", "started"), ("Commit", "commit")):
            if key in self.facts:
                found[label] = str(self.facts[key])
        for label, key in (("Trained on", "cost"), ("Recordings", "traces")):
            if name := read_fact(self.facts, key, "name"):
                found[label] = f"{Path(name).name}, sha256 {read_fact(self.facts, key, 'sha256')[:16]}"
        return found


def agreed(runs: Sequence[RunFolder], cost: DictConfig | None, data: DictConfig | None) -> Terms:
    """The terms that all runs share.

    Raises:
        ConfigError: naming the first that differs, and between which runs.
        CheckpointError: if a run does not say what its terms are.
    """
    first = runs[0].terms(cost, data)
    for run in runs[1:]:
        other = run.terms(cost, data)
        for what, (one, two) in _beside(first, other).items():
            if one != two:
                raise ConfigError(
                    f"Expected runs on the same clock and recordings, got {what} {one} of {runs[0].path} and {two} of "
                    f"{run.path}. Make a page for each, or judge all on one with cost=NAME data=NAME."
                )
    return first


def _beside(one: Terms, two: Terms) -> dict[str, tuple[str, str]]:
    """What has to agree; a file counts by what it holds, where that is known, not by its name."""
    return {
        "cost table": (_file(one.cost, one.cost_sha256), _file(two.cost, two.cost_sha256)),
        "batch": (str(one.batch), str(two.batch)),
        "recordings": (_file(one.traces, one.traces_sha256), _file(two.traces, two.traces_sha256)),
        "compressions": (str(one.compressions), str(two.compressions)),
        "tasks": (str(one.tasks), str(two.tasks)),
    }


def _file(name: str, sha256: str) -> str:
    return f"sha256 {sha256[:16]}" if sha256 else name


def _words(value: object) -> tuple[str, ...] | None:
    return tuple(map(str, value)) if isinstance(value, list) else None
