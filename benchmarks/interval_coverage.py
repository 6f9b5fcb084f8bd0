# SPDX-License-Identifier: Apache-2.0
"""How often the intervals and tests of a comparison are right, on made-up data whose truth is known.

    python -m benchmarks.interval_coverage --out benchmarks/results/interval-coverage.json

Each study draws new prompts (and runs), computes what `speckv evaluate` would and checks whether the interval holds the
true speed-up. `docs/evaluation.md` shows the result; a test holds the page to it.
"""

import argparse
import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from speckv.evaluation.bootstrap import Float64, Interval, ratio_interval, resample_counts
from speckv.evaluation.entrants import Entrant, References, measure
from speckv.evaluation.metrics import ALL, Group, Sums
from speckv.evaluation.significance import EQUAL, VS_BEST_FIXED, VS_FIRST, paired_families
from speckv.files import canonical_json, write_atomically

RESULT = Path(__file__).resolve().parent / "results" / "interval-coverage.json"
STEPS = 16
"""Of each prompt, where intervals over steps are looked at."""
DIFFICULTY, STEP, OWN, SEED, MIXED = 0.5, 0.3, 0.15, 0.05, 0.05
"""Standard deviations of logarithms: of a prompt's length, of a step's time, of a controller on a prompt, of a run, and
of a run on a prompt."""
TRUTH = 1.1

logger = logging.getLogger(__name__)


def lognormal(rng: np.random.Generator, deviation: float, *shape: int) -> Float64:
    """Draws factors of mean 1."""
    factors: Float64 = rng.lognormal(-(deviation**2) / 2, deviation, shape)
    return factors


def sums_of(name: str, seconds: Float64) -> Sums:
    """A controller's sums of which the seconds alone matter; shape [prompts, compressions]."""
    ones = np.ones_like(seconds)
    gammas = np.ones((*seconds.shape, 2))
    return Sums(
        name=name, tokens=ones, seconds=seconds, steps=ones, drafted=ones, accepted=ones, tested=ones, gammas=gammas
    )


def whole_group(prompts: int, columns: int = 1) -> Group:
    """The group of all prompts."""
    return Group(compression=ALL, task=ALL, prompts=np.arange(prompts), columns=np.arange(columns))


def covers(interval: Interval, truth: float) -> bool:
    """Whether an interval holds the truth."""
    assert interval.low is not None
    assert interval.high is not None
    return interval.low <= truth <= interval.high


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptCoverage:
    """Shares of studies whose 95 % interval held the truth.

    Attributes:
        paired: Whole prompts resampled, both controllers on the same: what `speckv evaluate` does.
        steps: Steps resampled as if each stood for itself.
    """

    paired: float
    steps: float


def prompt_coverage(prompts: int, *, studies: int, resamples: int = 1000, seed: int = 0) -> PromptCoverage:
    """Looks at intervals of one run's speed-up."""
    rng = np.random.default_rng([seed, prompts])
    of_prompts = resample_counts(["all"] * prompts, resamples, seed)
    of_steps = resample_counts(["all"] * (prompts * STEPS), resamples, seed)
    hits = np.zeros(2)
    for _ in range(studies):
        shared = lognormal(rng, DIFFICULTY, prompts, 1)
        baseline, ours = (
            shared * lognormal(rng, OWN, prompts, 1) * lognormal(rng, STEP, prompts, STEPS) * factor
            for factor in (TRUTH, 1.0)
        )
        paired = ratio_interval(baseline.sum(axis=1), ours.sum(axis=1), of_prompts)
        by_step = ratio_interval(baseline.ravel(), ours.ravel(), of_steps)
        hits += covers(paired, TRUTH), covers(by_step, TRUTH)
    return PromptCoverage(paired=float(hits[0] / studies), steps=float(hits[1] / studies))


def made_up_runs(rng: np.random.Generator, seeds: int, prompts: int, truth: float) -> tuple[Sums, list[Sums]]:
    """Draws a baseline and runs of one agent that is `truth` times as fast."""
    shared = lognormal(rng, DIFFICULTY, prompts)
    baseline = truth * shared * lognormal(rng, OWN, prompts)
    own = shared * lognormal(rng, OWN, prompts)
    runs = own * lognormal(rng, SEED, seeds, 1) * lognormal(rng, MIXED, seeds, prompts)
    return sums_of("base", baseline[:, np.newaxis]), [
        sums_of(f"run{k}", run[:, np.newaxis]) for k, run in enumerate(runs)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedCoverage:
    """Shares of studies of several runs.

    Attributes:
        hierarchical: Whose interval over prompts and seeds held the truth: what `speckv evaluate` does.
        prompts_alone: Whose interval over prompts, for the very runs there are, held it.
        false_claims: Whose test called the agent ahead or behind where there was no difference.
    """

    hierarchical: float
    prompts_alone: float
    false_claims: float


def seed_coverage(
    seeds: int, prompts: int, *, studies: int, resamples: int = 500, seed: int = 0, tested: bool = True
) -> SeedCoverage:
    """Looks at intervals and tests of an agent of several runs."""
    rng = np.random.default_rng([seed, seeds, prompts])
    counts = resample_counts(["all"] * prompts, resamples, seed)
    group = whole_group(prompts)
    hits, claims = np.zeros(2), 0
    for study in range(studies):
        baseline, runs = made_up_runs(rng, seeds, prompts, TRUTH)
        entrant = Entrant.of("agent", runs, rng.integers(0, seeds, (resamples, seeds)))
        references = References(autoregressive=baseline, best_fixed=baseline, clairvoyant=baseline)
        both = measure(entrant, group, references, counts).speedup_vs_best_fixed
        alone = ratio_interval(baseline.seconds[:, 0], entrant.sums.seconds[:, 0], counts)
        hits += covers(both, TRUTH), covers(alone, TRUTH)
        if tested:
            fair = Entrant.single(sums_of("base", baseline.seconds / TRUTH), resamples)
            (family,) = paired_families([entrant], fair, [group], num_resamples=resamples, seed=study)
            claims += family.pairs[0].outcome != EQUAL
    return SeedCoverage(
        hierarchical=float(hits[0] / studies),
        prompts_alone=float(hits[1] / studies),
        false_claims=claims / studies,
    )


def false_claims(controllers: int, prompts: int, *, studies: int, flips: int = 500, seed: int = 0) -> dict[str, float]:
    """Shares of studies with any false claim, where all controllers and the best fixed gamma are equally fast.

    Returns:
        Question -> share.
    """
    wrong = {VS_BEST_FIXED: 0, VS_FIRST: 0}
    for families in _equal_fields(controllers, prompts, studies=studies, flips=flips, seed=seed):
        for question, words in families.items():
            wrong[question] += any(word != EQUAL for word in words)
    return {question: count / studies for question, count in wrong.items()}


def _equal_fields(
    controllers: int, prompts: int, *, studies: int, flips: int, seed: int
) -> Iterator[dict[str, list[str]]]:
    rng = np.random.default_rng([seed, controllers, prompts])
    for study in range(studies):
        shared = lognormal(rng, DIFFICULTY, prompts, 2)
        seconds = shared * lognormal(rng, OWN, controllers + 1, prompts, 2)
        fixed, *entrants = (Entrant.single(sums_of(f"c{k}", s), 1) for k, s in enumerate(seconds))
        families = paired_families(entrants, fixed, [whole_group(prompts, 2)], num_resamples=flips, seed=study)
        yield {family.question: [v.outcome for v in family.pairs] for family in families}


def study_all(studies: int) -> dict[str, object]:
    """Everything that the page shows."""
    by_prompts = {n: prompt_coverage(n, studies=studies) for n in (20, 50, 120)}
    by_seeds = {n: seed_coverage(n, 120, studies=studies) for n in (2, 3, 5, 10, 30)}
    claims = {n: false_claims(n, 120, studies=studies) for n in (2, 10)}
    return {
        "studies": studies,
        "prompts": {str(n): {"paired": c.paired, "steps": c.steps} for n, c in by_prompts.items()},
        "seeds": {
            str(n): {
                "hierarchical": c.hierarchical,
                "prompts_alone": c.prompts_alone,
                "false_claims": c.false_claims,
            }
            for n, c in by_seeds.items()
        },
        "false_claims": {str(n): c for n, c in claims.items()},
    }


def tables(content: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    """The page's tables in Markdown."""
    shown = (
        ("prompts", ("test prompts", "whole prompts, paired", "steps as if independent"), ("paired", "steps")),
        (
            "seeds",
            ("seeds", "prompts and seeds", "prompts alone", "false claims of the test"),
            ("hierarchical", "prompts_alone", "false_claims"),
        ),
        (
            "false_claims",
            ("controllers", "any false claim, against the best fixed gamma", "against the first-ranked"),
            (VS_BEST_FIXED, VS_FIRST),
        ),
    )
    rendered = []
    for key, header, columns in shown:
        rows = [(n, *(f"{values[c]:.3f}" for c in columns)) for n, values in _by_size(content[key])]
        lines = [header, ["---"] * len(header), *rows]
        rendered.append("\n".join("| " + " | ".join(cells) + " |" for cells in lines))
    return rendered


def _by_size(found: dict[str, dict[str, float]]) -> list[tuple[str, dict[str, float]]]:
    return sorted(found.items(), key=lambda item: int(item[0]))


def load() -> dict[str, dict[str, dict[str, float]]]:
    """Reads the committed result."""
    content: dict[str, dict[str, dict[str, float]]] = json.loads(RESULT.read_text(encoding="utf-8"))
    return content


def main() -> None:
    """Runs all studies, prints the tables, and writes the result."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=2000, help="made-up studies of each kind")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    arguments = parser.parse_args()
    content = study_all(arguments.studies)
    text = canonical_json(content)
    logger.info("\n\n".join(tables(json.loads(text))))
    if arguments.out is not None:
        write_atomically(arguments.out, text)


if __name__ == "__main__":
    main()
