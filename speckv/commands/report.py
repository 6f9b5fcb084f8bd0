# SPDX-License-Identifier: Apache-2.0
"""`speckv report RUN...`: one self-contained HTML page about an evaluation."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from speckv.commands.app import plain, quoted
from speckv.cost import CostTable
from speckv.errors import CheckpointError, ConfigError, DataError
from speckv.evaluation.compare import NUM_RESAMPLES, compare, with_decode_steps
from speckv.evaluation.curves import EVAL, Curve, read_curve
from speckv.evaluation.replays import FixedSweep, tune_fixed
from speckv.evaluation.run_facts import CONFIG, controller_folder, find_seed_groups, read_fact, read_facts
from speckv.files import write_atomically
from speckv.profiling.prompts import read_prompts
from speckv.report.content import PageTexts, ShownController, page_content
from speckv.report.page import render_page
from speckv.report.texts import Vocabulary, shipped_vocabulary
from speckv.runtime.policy import Policy, load_controller, named_apart
from speckv.traces import TraceSet, find_traces

logger = logging.getLogger(__name__)
PAGE = "report.html"
MOST_BYTES = 3_000_000
"""Limit of a page, which must open at once and fit into a mail."""
_MATERIAL = ("traces", "compressions", "tasks", "cost")
"""Settings of `learn` by which a run validates on other recordings or another cost table than its own."""


def overrides(arguments: list[str]) -> list[str]:
    """Turns the leading run folders into an override; the remaining arguments are overrides."""
    settings = (k for k, argument in enumerate(arguments) if "=" in argument and not Path(argument).exists())
    number = next(settings, len(arguments))
    if not number and any(argument.startswith("runs=") for argument in arguments):
        return arguments
    if not number:
        raise ConfigError("Expected run folders first: speckv report RUN... [key=value ...].")
    return [f"runs=[{','.join(map(quoted, arguments[:number]))}]", *arguments[number:]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInputs:
    """Recordings and cost table of a run, which runs on one page must share; hashes that were not recorded are ""."""

    cost: str
    batch: int
    cost_sha256: str
    traces: str
    traces_sha256: str
    compressions: tuple[str, ...] | None
    tasks: tuple[str, ...] | None

    def comparable(self) -> dict[str, str]:
        """Everything that must agree; a file with a recorded hash counts by its hash, not by its name."""
        return {
            "cost table": f"sha256 {self.cost_sha256[:16]}" if self.cost_sha256 else self.cost,
            "batch": str(self.batch),
            "recordings": f"sha256 {self.traces_sha256[:16]}" if self.traces_sha256 else self.traces,
            "compressions": str(self.compressions),
            "tasks": str(self.tasks),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRun:
    """A run folder: its `run.json` (`facts`) and `config.yaml`, both empty in the folder of a policy."""

    path: Path
    facts: Mapping[str, object]
    config: Mapping[str, object]

    @staticmethod
    def read(path: Path) -> "RecordedRun":
        """Reads a folder."""
        facts = read_facts(path)
        try:
            config = OmegaConf.load(path / CONFIG) if (path / CONFIG).is_file() else OmegaConf.create({})
        except Exception as error:  # the YAML parser raises its own errors
            raise CheckpointError(f"{path}: expected a readable {CONFIG}, got: {error}.") from error
        if not isinstance(config, DictConfig):
            raise CheckpointError(f"{path}: expected an object in {CONFIG}. The folder is damaged.")
        return RecordedRun(path=path, facts=facts, config=plain(config))

    def inputs(self, cost: DictConfig | None, data: DictConfig | None) -> RunInputs:
        """Recordings and cost table to evaluate the controller on; settings that are given replace the run's."""
        clock = plain(cost) if cost is not None else self._group("cost", "table")
        recordings = plain(data) if data is not None else self._group("data", "traces")
        return RunInputs(
            cost=str(clock["table"]),
            batch=int(str(clock.get("batch", 1))),
            cost_sha256=read_fact(self.facts, "cost", "sha256") if cost is None else "",
            traces=str(recordings["traces"]),
            traces_sha256=read_fact(self.facts, "traces", "sha256") if data is None else "",
            compressions=_texts(recordings.get("compressions")),
            tasks=_texts(recordings.get("tasks")),
        )

    def _group(self, name: str, needed: str) -> Mapping[str, object]:
        group = self.config.get(name)
        if not isinstance(group, dict) or needed not in group:
            raise CheckpointError(
                f"Expected {self.path} to name recordings and cost table, found none. "
                "Give cost=NAME and data=NAME, such as cost=cpu-2core data=qwen2.5-coder."
            )
        return group

    @property
    def seed(self) -> int:
        """Of the run, and of the intervals of its own evaluation."""
        return int(str(self.config.get("seed", 0)))

    @property
    def num_resamples(self) -> int:
        """Of the bootstrap of its own evaluation."""
        group = self.config.get("eval")
        return int(str(group.get("num_resamples", NUM_RESAMPLES))) if isinstance(group, dict) else NUM_RESAMPLES

    @property
    def learned_elsewhere(self) -> bool:
        """Whether it learned on other recordings or another cost table than its own."""
        learn = self.config.get("learn")
        return isinstance(learn, dict) and any(learn.get(name) is not None for name in _MATERIAL)

    @property
    def provenance(self) -> dict[str, str]:
        """Recorded facts of the run: label -> value."""
        found = {"Folder": self.path.resolve().name}
        for label, key in (("Agent", "agent"), ("Seed", "seed"), ("Started", "started"), ("Commit", "commit")):
            if key in self.facts:
                found[label] = str(self.facts[key])
        for label, key in (("Trained on", "cost"), ("Recordings", "traces")):
            if name := read_fact(self.facts, key, "name"):
                found[label] = f"{Path(name).name}, sha256 {read_fact(self.facts, key, 'sha256')[:16]}"
        return found


def shared_inputs(runs: Sequence[RecordedRun], cost: DictConfig | None, data: DictConfig | None) -> RunInputs:
    """The inputs of the runs; a ConfigError names the first difference."""
    first = runs[0].inputs(cost, data)
    for run in runs[1:]:
        other = run.inputs(cost, data).comparable()
        for what, one in first.comparable().items():
            if one != other[what]:
                raise ConfigError(
                    f"Expected runs on the same clock and recordings, got {what} {one} of {runs[0].path} and "
                    f"{other[what]} of {run.path}. Make a page for each, or use one for all with cost=NAME data=NAME."
                )
    return first


def _texts(value: object) -> tuple[str, ...] | None:
    return tuple(map(str, value)) if isinstance(value, list) else None


def _load_data(inputs: RunInputs, run: Path) -> tuple[TraceSet, CostTable]:
    cost = CostTable.load(inputs.cost).at_batch(inputs.batch)
    traces = TraceSet.load(find_traces(inputs.traces))
    for name, before, now in (
        (f"cost table {inputs.cost}", inputs.cost_sha256, cost.sha256),
        (f"trace file {inputs.traces}", inputs.traces_sha256, traces.sha256),
    ):
        if before and before != now:
            raise CheckpointError(
                f"Expected the {name} that {run} was trained on, sha256 {before[:16]}, got {now[:16]}. "
                "Restore it, or evaluate the run on the present one with cost=NAME data=NAME."
            )
    return with_decode_steps(traces.select(compressions=inputs.compressions, tasks=inputs.tasks)), cost


def run(config: DictConfig) -> None:
    """Replays the runs' controllers on the test prompts and writes the page."""
    if int(config.prompts_per_task) < 1:
        raise ConfigError(f"Expected prompts_per_task of 1 or more, got {config.prompts_per_task}.")
    cost, data = config.get("cost"), config.get("data")  # both groups may be left unset
    recorded = None if config.get("data") is None else str(config.data.traces)
    runs = [RecordedRun.read(controller_folder(str(word), recorded)) for word in config.runs]
    traces, table = _load_data(shared_inputs(runs, cost, data), runs[0].path)
    out = Path(config.out) if config.out else runs[0].path / "evaluation" / PAGE if len(runs) == 1 else Path(PAGE)
    page = _page(config, runs, traces, table)
    write_atomically(out, page)
    logger.info("wrote %s, %.2f MB", out, len(page.encode()) / 1e6)


def _page_texts(config: DictConfig, test: TraceSet) -> PageTexts:
    prompts = {p.prompt_id: p.text for p in read_prompts(config.prompts)} if config.prompts else {}
    pieces, source = _token_bytes(config, test)
    return PageTexts(pieces=pieces, source=source, prompts=prompts)


def _token_bytes(config: DictConfig, test: TraceSet) -> tuple[Mapping[int, bytes], str]:
    if config.tokenizer or config.model.folder:
        # Imported here, because transformers takes seconds to import and most pages do not need it.
        from speckv.commands.vocabulary import vocabulary_of
        from speckv.models.pair import choose_pair

        tokenizer = config.tokenizer or choose_pair(plain(config.model)).target
        pieces = vocabulary_of(tokenizer, {"the trace file": test}).pieces
        return pieces, f"Texts from the tokenizer of {Path(tokenizer).name}."
    expected = test.metadata.tokenizer_sha256
    if config.vocabulary:
        vocabulary = Vocabulary.load(Path(config.vocabulary))
        if vocabulary.tokenizer_sha256 != expected:
            raise DataError(
                f"Expected a vocabulary of the recordings' tokenizer, sha256 {expected[:16]}, got {config.vocabulary} "
                f"of {vocabulary.tokenizer_sha256[:16]}. Write one with `speckv vocabulary`."
            )
        return vocabulary.pieces, f"Texts from {Path(config.vocabulary).name}."
    shipped = shipped_vocabulary(expected)
    if shipped is not None:
        return shipped.pieces, "Texts from the vocabulary that comes with SpecKV."
    return {}, (
        "Tokens are shown as numbers, because no vocabulary of this tokenizer comes with SpecKV: name one with "
        "tokenizer=FOLDER, or a file with vocabulary=FILE."
    )


def _page(config: DictConfig, runs: Sequence[RecordedRun], traces: TraceSet, cost: CostTable) -> str:
    train, test = traces.select(split="train"), traces.select(split="test")
    texts = _page_texts(config, test)
    paths = [one.path for one in runs]
    controllers = named_apart([Policy.load(path) for path in paths], paths)
    # One run gets the seed of its own evaluation, several that of `speckv evaluate`: the same draws, the same results.
    seed, resamples = (runs[0].seed, runs[0].num_resamples) if len(runs) == 1 else (0, NUM_RESAMPLES)
    seed = seed if config.seed is None else int(config.seed)
    resamples = resamples if config.num_resamples is None else int(config.num_resamples)
    sweep = tune_fixed(train, cost)
    comparison = compare(
        train=train,
        test=test,
        cost=cost,
        controllers=controllers,
        num_resamples=resamples,
        seed=seed,
        train_sweep=sweep,
        seed_groups=find_seed_groups(paths, controllers, load_controller),
    )
    # Recorded seconds are of the run's own cost table and cannot be compared with another one.
    own = config.get("cost") is None and config.get("data") is None
    shown = [
        ShownController(
            controller=controller,
            facts=one.provenance,
            curve=_curve(one, sweep, resamples, seed) if own and not one.learned_elsewhere else None,
        )
        for one, controller in zip(runs, controllers, strict=True)
    ]
    for per_task in range(int(config.prompts_per_task), 0, -1):
        content = page_content(comparison, shown, test=test, cost=cost, texts=texts, prompts_per_task=per_task)
        page = render_page(content)
        if len(page.encode()) <= MOST_BYTES:
            return page
    raise ConfigError(
        f"Expected a page of at most {MOST_BYTES / 1e6:.0f} MB, got {len(page.encode()) / 1e6:.1f} MB with one prompt "
        f"of each task. Show fewer than {len(runs)} runs, or fewer compressions and tasks with data=NAME."
    )


def _curve(run: RecordedRun, sweep: FixedSweep, num_resamples: int, seed: int) -> Curve | None:
    path = run.path / EVAL
    if not path.is_file():
        return None
    fixed = sweep.combine(sweep.best())
    curve = read_curve(path, sweep.grid, fixed, part=True, num_resamples=num_resamples, seed=seed)
    return curve if len(curve.points) > 1 else None
