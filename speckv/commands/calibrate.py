# SPDX-License-Identifier: Apache-2.0
"""`speckv calibrate name=my-machine out=my-machine.json`."""

import itertools
import logging
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from speckv.commands.app import compose_checked, plain
from speckv.cost import CostEntry, CostTable
from speckv.decoding import PromptLookup
from speckv.errors import ConfigError, CostTableError
from speckv.models.device import use_threads
from speckv.models.pair import choose_pair
from speckv.observation import SCHEMA
from speckv.profiling.calibrate import CalibrationPlan, CheckPlan, calibrate, with_lookup_times
from speckv.profiling.partial import PartialTable
from speckv.profiling.prompts import first_of_each, read_prompts
from speckv.profiling.timing import WIDTHS, TimingPlan
from speckv.runtime.learned import MlpPolicy, PolicyController
from speckv.types import GAMMA_MAX

TIMED_VOCABULARY = 50_000
"""Vocabulary of the text that a lookup is timed on."""
logger = logging.getLogger(__name__)
CHECK_PROMPTS = Path(__file__).parents[1] / "assets" / "prompts" / "check.jsonl"
SHOWN_WIDTHS = (1, 2, 5, 9, 17)
QUICK = {
    "widths": "[1,2,3,5,9,17]",
    "repeats": "3",
    "warmups": "1",
    "reference_context": "128",
    "far_context": "512",
    "check": "false",
}
"""Settings of `quick=true`."""
QUICK_NOTES = (
    "Quick calibration: few widths, the others interpolated; few rounds; not checked against live runs. Calibrate "
    "without quick=true before publishing anything."
)


def run(config: DictConfig) -> None:
    """Measures as configured, writes the table, and warns if it should not be published."""
    use_threads(config.threads)
    plan = CalibrationPlan(
        name=config.name,
        pair=choose_pair(plain(config.model)),
        compressions=tuple(config.compressions),
        timing=TimingPlan(
            reference_context=config.reference_context,
            far_context=config.far_context,
            widths=tuple(config.widths or WIDTHS),
            repeats=config.repeats,
            warmups=config.warmups,
        ),
        batches=tuple(config.batches),
        check=_check_plan(config) if config.check else None,
        notes=" ".join(filter(None, (config.notes, QUICK_NOTES if config.quick else ""))),
    )
    out = Path(config.out or f"{config.name}.json")
    if config["from"] is None:
        kept = PartialTable(out, plan)
        begun = kept.load()
        policy = PolicyController(typical_policy())
        try:
            table = calibrate(plan, policy, on_progress=logger.info, keep=kept.save, begun=begun)
        except KeyboardInterrupt:
            if kept.path.is_file():
                logger.info("kept in %s; the same command goes on from there", kept.path)
            raise
    else:
        table = _with_lookup(CostTable.load(config["from"]), plan)
    table.save(out)
    PartialTable(out, plan).delete()
    for entry in (*table.entries.values(), *table.loads):
        logger.info(_times(entry))
    for name, entry in table.entries.items():
        logger.info("%s: cost ratio %.2f; %s; %s", name, table.cost_ratio(name), entry.kernel, table.checks[name])
    logger.info("decision %.0f us; wrote %s: %s", 1e6 * table.controller_s, out, table.covers)
    try:
        table.require_publishable()
    except CostTableError as error:
        logger.warning("not for publication: %s", error)


def overrides(arguments: list[str]) -> list[str]:
    """With `quick=true`, the settings of `QUICK` for those that are not given."""
    if not compose_checked("calibrate", arguments).quick:
        return arguments
    given = {argument.partition("=")[0].lstrip("+") for argument in arguments}
    return [*(f"{key}={value}" for key, value in QUICK.items() if key not in given), *arguments]


def shipped_check() -> CheckPlan:
    """The check on the shipped prompts."""
    return CheckPlan(prompts=tuple(prompt.text for prompt in read_prompts([CHECK_PROMPTS])))


def _check_plan(config: DictConfig) -> CheckPlan:
    prompts = read_prompts(config.check_prompts or [CHECK_PROMPTS])
    if config.check_per_task is not None:
        prompts = first_of_each(prompts, config.check_per_task)
    return CheckPlan(
        prompts=tuple(prompt.text for prompt in prompts),
        gammas=tuple(config.check_gammas),
        max_new_tokens=config.check_tokens,
    )


def _times(entry: CostEntry) -> str:
    times = ", ".join(
        f"{width}: {1e3 * seconds:.3g}"
        for width, seconds in zip(entry.verify_widths, entry.verify_s, strict=True)
        if width in SHOWN_WIDTHS
    )
    return (
        f"{entry.compression} ({entry.dtype}), batch {entry.batch}: verify ms by width {times}; "
        f"draft {1e3 * entry.draft_s[0]:.3g} ms; worst spread {100 * max(entry.spread):.0f} %"
    )


def _with_lookup(table: CostTable, plan: CalibrationPlan) -> CostTable:
    if plan.pair.draft != "lookup":
        raise ConfigError(
            f"Expected model.draft=lookup to take the target's times from {table.name}, got {plan.pair.draft!r}: a "
            "model has to be measured. Leave `from` out."
        )
    lookup = PromptLookup(TIMED_VOCABULARY, plan.pair.lookup_longest, plan.pair.lookup_shortest)
    return with_lookup_times(table, lookup, plan)


def typical_policy(hidden: int = 64) -> MlpPolicy:
    """A random policy of the usual size, for timing: the time of a decision does not depend on the weights."""
    rng = np.random.default_rng(0)
    sizes = (SCHEMA.size, hidden, hidden, GAMMA_MAX + 1)
    return MlpPolicy(
        name="typical",
        schema=SCHEMA,
        gammas=tuple(range(GAMMA_MAX + 1)),
        mean=np.zeros(SCHEMA.size, np.float32),
        std=np.ones(SCHEMA.size, np.float32),
        weights=tuple(rng.normal(size=(b, a)).astype(np.float32) for a, b in itertools.pairwise(sizes)),
        biases=tuple(np.zeros(size, np.float32) for size in sizes[1:]),
    )
