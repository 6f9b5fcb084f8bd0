# SPDX-License-Identifier: Apache-2.0
"""Controllers under test: single runs, or several runs that differ by their seed and count as one.

What a learner learned depends on its seed, so an interval over prompts describes one run and not the method. Here seeds
are resampled as well as prompts. The two are crossed: every run decodes every prompt, so a resample draws prompts once,
the same for all runs and all controllers, and draws runs independently.

Of n runs a resample draws n - 1. Resampling all n gives a variance that is too small by (n - 1) / n, which is a fifth
with five seeds; n - 1 draws give the unbiased one.

A performance profile is the share of prompts on which a controller reaches each speed-up over the best fixed gamma.

Source:
    Rao and Wu 1988, JASA 83(401), section 2, for n - 1 draws. Owen 2007, Annals of Applied Statistics 1(2), for
    crossed resampling, there called the pigeonhole bootstrap. Agarwal et al. 2021, arXiv:2108.13264, for the
    interquartile mean over runs and for profiles with bootstrap bands (section 4.2). Dolan and Moré 2002, Mathematical
    Programming 91(2), for performance profiles.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from speckv.errors import ConfigError
from speckv.evaluation.bootstrap import MIN_PROMPTS, Float64, Interval, percentile_interval, unbounded
from speckv.evaluation.metrics import ControllerMetrics, Group, References, Sums, measure, pooled

MIN_SEEDS = 2
"""Runs of a group; with fewer there is nothing to resample."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedGroup:
    """Names of the runs that one line of a table stands for.

    Attributes:
        name: Of the group.
        members: Names of the controllers in it, one a seed.
    """

    name: str
    members: tuple[str, ...]

    @staticmethod
    def of(name: str, members: Sequence[str]) -> "SeedGroup":
        """Names a group after its agent and its size.

        >>> SeedGroup.of("ppo", ["a", "b"]).name
        'ppo (2 seeds)'
        """
        return SeedGroup(name=f"{name} ({len(members)} seeds)", members=tuple(members))


@dataclass(frozen=True, slots=True, kw_only=True)
class Entrant:
    """A controller under test: one run, or several that differ by their seed.

    Attributes:
        name: Shown in tables.
        runs: One a seed.
        sums: Means over the runs: ratios of them are ratios of sums.
        picks: Shape [resamples, runs]; the runs that each resample draws, all 0 where there is one.
        shares: Shape [resamples, runs]; each run's share of the n - 1 draws, 1 for a single run.
    """

    name: str
    runs: tuple[Sums, ...]
    sums: Sums
    picks: NDArray[np.int64]
    shares: Float64

    @staticmethod
    def of(name: str, runs: Sequence[Sums], picks: NDArray[np.int64]) -> "Entrant":
        """Puts runs together.

        Args:
            name: Shown in tables.
            runs: One a seed.
            picks: Shape [resamples, runs]; places in `runs`.
        """
        drawn = picks[:, : max(len(runs) - 1, 1)]
        shares = np.stack([(drawn == run).mean(axis=1) for run in range(len(runs))], axis=1)
        return Entrant(name=name, runs=tuple(runs), sums=pooled(name, runs), picks=picks, shares=shares)

    @staticmethod
    def drawn(name: str, runs: Sequence[Sums], *, num_resamples: int, rng: np.random.Generator) -> "Entrant":
        """Puts runs together and draws from them.

        Args:
            name: Shown in tables.
            runs: One a seed.
            num_resamples: Of the bootstrap.
            rng: From `run_generator`; draws for one entrant after the other.
        """
        return Entrant.of(name, runs, rng.integers(0, len(runs), (num_resamples, len(runs))))

    @staticmethod
    def alone(sums: Sums, num_resamples: int) -> "Entrant":
        """Takes a single run as it is."""
        return Entrant.of(sums.name, (sums,), np.zeros((num_resamples, 1), np.int64))


def run_generator(seed: int) -> np.random.Generator:
    """Draws runs: another stream than the prompts', or both would be drawn by the same numbers."""
    return np.random.default_rng([seed, 1])


def make_entrants(
    tested: Sequence[Sums], groups: Sequence[SeedGroup], *, num_resamples: int, seed: int
) -> tuple[Entrant, ...]:
    """Puts runs of one agent together; the others stay alone. A group stands where its first member stood.

    Args:
        tested: Controllers under test, in the order of the table.
        groups: Which of them belong together.
        num_resamples: Of the bootstrap.
        seed: Of the draws of runs.

    Raises:
        ConfigError: if a group is too small, or names an unknown controller or one that another group holds.
    """
    by_name = {s.name: s for s in tested}
    members = [name for group in groups for name in group.members]
    wrong = {name for name in members if name not in by_name or members.count(name) > 1}
    small = [group.name for group in groups if len(group.members) < MIN_SEEDS]
    if wrong or small:
        raise ConfigError(
            f"Expected groups of {MIN_SEEDS} or more controllers, each in one group, got {sorted(wrong) or small}."
        )
    rng = run_generator(seed)
    first = {group.members[0]: group for group in groups}
    entrants = []
    for sums in tested:
        if sums.name in first:
            runs = tuple(by_name[name] for name in first[sums.name].members)
            entrants.append(Entrant.drawn(first[sums.name].name, runs, num_resamples=num_resamples, rng=rng))
        elif sums.name not in members:
            entrants.append(Entrant.alone(sums, num_resamples))
    return tuple(entrants)


def interquartile_mean(values: Float64) -> Float64:
    """Mean of the middle half along the last axis: a quarter of the values, rounded down, is left out at either end.

    >>> interquartile_mean(np.array([9.0, 1.0, 2.0, 3.0, 100.0])).item()
    4.666666666666667
    """
    cut = values.shape[-1] // 4
    middle: Float64 = np.sort(values, axis=-1)[..., cut : values.shape[-1] - cut].mean(axis=-1)
    return middle


def measure_entrant(entrant: Entrant, group: Group, references: References, counts: Float64) -> ControllerMetrics:
    """Computes one row; that of several runs has intervals over prompts and seeds, and their interquartile mean.

    Args:
        entrant: The controller.
        group: Where.
        references: Baselines and bound on the same grid.
        counts: Shape [resamples, prompts of the whole grid], from `resample_counts`.
    """
    row = measure(entrant.sums, group, references, counts)
    if len(entrant.runs) < MIN_SEEDS:
        return row
    vs_ar, geomean_vs_ar = _intervals(entrant, references.autoregressive, group, counts)
    vs_best_fixed, geomean_vs_best_fixed = _intervals(entrant, references.best_fixed, group, counts)
    return replace(
        row,
        speedup_vs_ar=vs_ar,
        speedup_vs_best_fixed=vs_best_fixed,
        geomean_vs_ar=geomean_vs_ar,
        geomean_vs_best_fixed=geomean_vs_best_fixed,
        seeds_iqm=_iqm_interval(entrant, references.best_fixed, group, counts),
    )


def _seconds(entrant: Entrant, group: Group) -> Float64:
    return np.stack([group.take(run.seconds) for run in entrant.runs])


def _enough(seconds: Float64) -> bool:
    return bool(np.count_nonzero(seconds.sum(axis=(0, 2))) >= MIN_PROMPTS)


def _intervals(entrant: Entrant, baseline: Sums, group: Group, counts: Float64) -> tuple[Interval, Interval]:
    """Intervals of sum over sum, and of the geometric mean over compressions of that."""
    plain, ours = group.take(baseline.seconds), _seconds(entrant, group)
    mean = ours.mean(axis=0)
    ratio = float(plain.sum() / mean.sum())
    geomean = float(np.exp(np.log(plain.sum(axis=0) / mean.sum(axis=0)).mean()))
    if not _enough(ours):
        return unbounded(ratio), unbounded(geomean)
    weights = counts[:, group.prompts]
    with np.errstate(divide="ignore", invalid="ignore"):
        above = weights @ plain
        below = resampled_seconds(entrant, group, counts)
        ratios = above.sum(axis=1) / below.sum(axis=1)
        geomeans = np.exp(np.log(above / below).mean(axis=1))
    return percentile_interval(ratio, ratios), percentile_interval(geomean, geomeans)


def resampled_seconds(entrant: Entrant, group: Group, counts: Float64) -> Float64:
    """Seconds in each resample of prompts and runs, of shape [resamples, compressions].

    Args:
        entrant: The controller.
        group: Where.
        counts: Shape [resamples, prompts of the whole grid], from `resample_counts`.
    """
    seconds: Float64 = np.einsum(
        "bs,bsc->bc", entrant.shares, _resampled(_seconds(entrant, group), counts[:, group.prompts])
    )
    return seconds


def speedup_over(entrant: Entrant, other: Entrant, group: Group, counts: Float64) -> Interval:
    """Geometric mean over compressions of the speed-up over another controller, whose runs are drawn apart.

    Args:
        entrant: The controller.
        other: The one that it is held to.
        group: Where.
        counts: As above.
    """
    above, below = (group.take(e.sums.seconds).sum(axis=0) for e in (other, entrant))
    estimate = float(np.exp(np.log(above / below).mean()))
    if not _enough(_seconds(entrant, group)):
        return unbounded(estimate)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = resampled_seconds(other, group, counts) / resampled_seconds(entrant, group, counts)
        return percentile_interval(estimate, np.exp(np.log(ratios).mean(axis=1)))


def _resampled(ours: Float64, weights: Float64) -> Float64:
    """Seconds of each run in each resample of the prompts, of shape [resamples, runs, compressions]."""
    return np.stack([weights @ run for run in ours], axis=1)


def _iqm_interval(entrant: Entrant, baseline: Sums, group: Group, counts: Float64) -> Interval:
    """Interquartile mean over runs of the geometric mean over compressions of the speed-up."""
    plain, ours = group.take(baseline.seconds), _seconds(entrant, group)
    by_run = np.exp(np.log(plain.sum(axis=0) / ours.sum(axis=1)).mean(axis=1))
    estimate = float(interquartile_mean(by_run))
    if not _enough(ours):
        return unbounded(estimate)
    weights = counts[:, group.prompts]
    with np.errstate(divide="ignore", invalid="ignore"):
        above = (weights @ plain)[:, np.newaxis]
        speedups = np.exp(np.log(above / _resampled(ours, weights)).mean(axis=2))
    # All n draws, as Agarwal et al. have it: the trimmed share has to stay what it is.
    return percentile_interval(estimate, interquartile_mean(np.take_along_axis(speedups, entrant.picks, axis=1)))


TAUS: tuple[float, ...] = tuple(k / 40 for k in range(24, 65))
"""Speed-ups at which a profile is taken, 0.6 to 1.6."""
_TIE = 1e-9
"""Relative; two equal times may differ by their rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Shares of prompts by speed-up.

    Attributes:
        controller: Its name.
        compression: One compression or "all".
        shares: Shape [taus]; share of prompts, over all runs, with a speed-up of at least tau.
        low: Shape [taus]; lower end of the pointwise interval, None where there are too few prompts.
        high: Likewise.
    """

    controller: str
    compression: str
    shares: Float64
    low: Float64 | None
    high: Float64 | None

    def share(self, tau: float) -> float:
        """The share at one of `TAUS`."""
        return float(self.shares[TAUS.index(tau)])


def speedup_profile(
    entrant: Entrant, best_fixed: Sums, group: Group, counts: Float64, *, confidence: float = 0.95
) -> Profile:
    """Takes one profile. In a group of several compressions a prompt counts once at each of them.

    Args:
        entrant: The controller.
        best_fixed: The number to beat.
        group: Where.
        counts: Shape [resamples, prompts of the whole grid], from `resample_counts`.
        confidence: Coverage that is aimed at, at each tau by itself.
    """
    fixed = group.take(best_fixed.seconds)
    recorded = fixed > 0
    reached = np.stack([_reached(fixed, group.take(run.seconds)) for run in entrant.runs])
    shares = reached.sum(axis=(0, 1)) / (len(entrant.runs) * recorded.sum())
    low = high = None
    if np.count_nonzero(recorded.any(axis=1)) >= MIN_PROMPTS:
        weights = counts[:, group.prompts]
        above = np.zeros((len(weights), len(TAUS)))
        for run, hits in enumerate(reached):
            above += entrant.shares[:, [run]] * (weights @ hits)
        below = weights @ recorded.sum(axis=1)
        usable = below > 0
        tail = 50.0 * (1.0 - confidence)
        low, high = np.percentile(above[usable] / below[usable, np.newaxis], [tail, 100.0 - tail], axis=0)
    return Profile(controller=entrant.name, compression=group.compression, shares=shares, low=low, high=high)


def _reached(fixed: Float64, ours: Float64) -> Float64:
    """How many recordings of each prompt reach each tau; shape [prompts, taus]."""
    with np.errstate(divide="ignore", invalid="ignore"):
        speedups = fixed / ours
    # What was not recorded is 0 / 0 and reaches nothing.
    reached: Float64 = (speedups[:, :, np.newaxis] >= np.array(TAUS) * (1.0 - _TIE)).sum(axis=1).astype(np.float64)
    return reached
