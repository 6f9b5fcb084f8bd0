# SPDX-License-Identifier: Apache-2.0
"""`python -m speckv report RUN...`: one self-contained HTML page about an evaluation."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from speckv.commands.quoting import quoted
from speckv.commands.run_folders import RunFolder, Terms, agreed
from speckv.cost import CostTable
from speckv.errors import CheckpointError, ConfigError, DataError
from speckv.evaluation.compare import NUM_RESAMPLES, compare, with_decode_steps
from speckv.evaluation.curves import EVAL, Curve, read_curve
from speckv.evaluation.replays import FixedSweep, tune_fixed
from speckv.evaluation.run_facts import controller_folder, find_seed_groups
from speckv.files import write_atomically
from speckv.profiling.prompts import read_prompts
from speckv.report.content import Shown, Words, page_content
from speckv.report.page import render_page
from speckv.report.vocabulary import Vocabulary, shipped_vocabulary
from speckv.runtime.stored import load_controller, name_apart
from speckv.traces import TraceSet, find_traces

logger = logging.getLogger(__name__)
PAGE = "report.html"
MOST_BYTES = 3_000_000
"""Of a page: what opens at once and travels by mail."""


def overrides(arguments: list[str]) -> list[str]:
    """Turns the leading run folders into an override; the rest are overrides already."""
    settings = (k for k, argument in enumerate(arguments) if "=" in argument and not Path(argument).exists())
    number = next(settings, len(arguments))
    if not number:
        raise ConfigError("Expected run folders first: python -m speckv report RUN... [key=value ...].")
    return [f"runs=[{','.join(map(quoted, arguments[:number]))}]", *arguments[number:]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ground:
    """What controllers are judged on."""

    train: TraceSet
    test: TraceSet
    cost: CostTable

    @staticmethod
    def load(terms: Terms, run: Path) -> "_Ground":
        """Reads it, and makes sure that it is what the run was trained on."""
        cost = CostTable.load(terms.cost).at_batch(terms.batch)
        traces = TraceSet.load(find_traces(terms.traces))
        for name, before, now in (
            (f"cost table {terms.cost}", terms.cost_sha256, cost.sha256),
            (f"trace file {terms.traces}", terms.traces_sha256, traces.sha256),
        ):
            if before and before != now:
                raise CheckpointError(
                    f"Expected the {name} that {run} was trained on, sha256 {before[:16]}, got {now[:16]}. "
                    "Restore it, or judge the run on today's with cost=NAME data=NAME."
                )
        chosen = with_decode_steps(traces.select(compressions=terms.compressions, tasks=terms.tasks))
        return _Ground(train=chosen.select(split="train"), test=chosen.select(split="test"), cost=cost)


def run(config: DictConfig) -> None:
    """Replays the runs' controllers on the test prompts and writes the page.

    Raises:
        SpecKVError: in one line, with nothing written, if anything is missing or the runs do not belong together.
    """
    if int(config.prompts_per_task) < 1:
        raise ConfigError(f"Expected prompts_per_task of 1 or more, got {config.prompts_per_task}.")
    cost, data = config.get("cost"), config.get("data")  # groups of which nothing need be chosen
    clock = None if cost is None else str(cost.table)
    runs = [RunFolder.read(controller_folder(str(word), clock)) for word in config.runs]
    ground = _Ground.load(agreed(runs, cost, data), runs[0].path)
    out = Path(config.out) if config.out else runs[0].path / "evaluation" / PAGE if len(runs) == 1 else Path(PAGE)
    page = _page(config, runs, ground, _words(config, ground.test))
    write_atomically(out, page)
    logger.info("wrote %s, %.2f MB", out, len(page.encode()) / 1e6)


def _words(config: DictConfig, test: TraceSet) -> Words:
    """Texts of tokens, from the first of: a tokenizer that is named, what is shipped, nothing."""
    prompts = {p.prompt_id: p.text for p in read_prompts(config.prompts)} if config.prompts else {}
    if config.tokenizer or config.model.folder:
        pieces, name = _from_tokenizer(config, test)
        return Words(pieces=pieces, source=f"Texts from the tokenizer of {name}.", prompts=prompts)
    expected = test.metadata.tokenizer_sha256
    if config.vocabulary:
        vocabulary = Vocabulary.load(Path(config.vocabulary))
        if vocabulary.tokenizer_sha256 != expected:
            raise DataError(
                f"Expected a vocabulary of the recordings' tokenizer, sha256 {expected[:16]}, got {config.vocabulary} "
                f"of {vocabulary.tokenizer_sha256[:16]}. Write one with `python -m speckv vocabulary`."
            )
        return Words(pieces=vocabulary.pieces, source=f"Texts from {Path(config.vocabulary).name}.", prompts=prompts)
    shipped = shipped_vocabulary(expected)
    if shipped is not None:
        return Words(pieces=shipped.pieces, source="Texts from the vocabulary that comes with SpecKV.", prompts=prompts)
    why = (
        "Tokens are shown as numbers, because no vocabulary of this tokenizer comes with SpecKV: name one with "
        "tokenizer=FOLDER, or a file with vocabulary=FILE."
    )
    return Words(pieces={}, source=why, prompts=prompts)


def _from_tokenizer(config: DictConfig, test: TraceSet) -> tuple[Mapping[int, bytes], str]:
    """The bytes of the recordings' tokens, and the name of where they are from."""
    # Late, because transformers takes seconds to import and most pages need none of it.
    from speckv.commands.models import pair_config
    from speckv.commands.vocabulary import vocabulary_of

    source = config.tokenizer or pair_config(config.model).target
    return vocabulary_of(source, {"the trace file": test}).pieces, Path(source).name


def _page(config: DictConfig, runs: Sequence[RunFolder], ground: _Ground, words: Words) -> str:
    paths = [one.path for one in runs]
    controllers = [load_controller(path) for path in paths]
    name_apart(controllers, paths)
    # One run is judged as at its own end, several as `evaluate.py` judges them: the same draws, the same verdicts.
    seed, resamples = (runs[0].seed, runs[0].num_resamples) if len(runs) == 1 else (0, NUM_RESAMPLES)
    seed = seed if config.seed is None else int(config.seed)
    resamples = resamples if config.num_resamples is None else int(config.num_resamples)
    train, test, cost = ground.train, ground.test, ground.cost
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
    # Recorded seconds are of the run's own clock: beside another one they say nothing.
    own = config.get("cost") is None and config.get("data") is None
    shown = [
        Shown(
            controller=controller,
            facts=one.words,
            curve=_curve(one, sweep, resamples, seed) if own and not one.learned_elsewhere else None,
        )
        for one, controller in zip(runs, controllers, strict=True)
    ]
    for per_task in range(int(config.prompts_per_task), 0, -1):
        content = page_content(comparison, shown, test=test, cost=cost, words=words, prompts_per_task=per_task)
        page = render_page(content)
        if len(page.encode()) <= MOST_BYTES:
            return page
    raise ConfigError(
        f"Expected a page of at most {MOST_BYTES / 1e6:.0f} MB, got {len(page.encode()) / 1e6:.1f} MB with one prompt "
        f"of each task. Show fewer than {len(runs)} runs, or fewer compressions and tasks with data=NAME."
    )


def _curve(run: RunFolder, sweep: FixedSweep, num_resamples: int, seed: int) -> Curve | None:
    """How a run got better; None where it was evaluated once at most, because it does not learn step by step."""
    path = run.path / EVAL
    if not path.is_file():
        return None
    fixed = sweep.combine(sweep.best())
    curve = read_curve(path, sweep.grid, fixed, part=True, num_resamples=num_resamples, seed=seed)
    return curve if len(curve.points) > 1 else None
