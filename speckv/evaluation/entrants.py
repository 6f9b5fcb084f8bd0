# SPDX-License-Identifier: Apache-2.0
"""Figures and intervals of controllers: single runs, or several runs that differ by their seed and count as one.

An interval over prompts describes one run of a learner, not the method, so seeds are resampled as well. Every run
decodes every prompt, so a resample draws prompts once, the same for all runs and all controllers, and draws runs
independently. Of n runs it draws n - 1, which makes the variance unbiased.

Source:
    Rao and Wu 1988, JASA 83(401), section 2, for n - 1 draws. Owen 2007, Annals of Applied Statistics 1(2), for
    crossed resampling, there called the pigeonhole bootstrap. Agarwal et al. 2021, arXiv:2108.13264, for the
    interquartile mean over runs and for profiles with bootstrap bands (section 4.2). Dolan and Moré 2002, Mathematical
    Programming 91(2), for performance profiles.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from speckv.errors import ConfigError
from speckv.evaluation.bootstrap import MIN_PROMPTS, Float64, Interval, geometric_mean, percentile_interval
from speckv.evaluation.metrics import Group, Sums, combine_sums
from speckv.types import IntArray

MIN_SEEDS = 2
"""Fewest runs of a group."""
TAUS: tuple[float, ...] = tuple(k / 200 for k in range(120, 321))
"""Speed-ups at which a profile is taken, 0.6 to 1.6."""
LEAST_ROOM = 0.01
"""Share by which the bound must be above the best fixed gamma before a share of that room means something."""
_TIE = 1e-9
"""Relative rounding difference of two equal times."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedGroup:
    """Names of runs that differ by their seed, shown as one controller."""

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
    """A controller under test: one run, or several that differ by their seed; `sums` are means over the runs.

    `picks` and `shares`, both of shape [resamples, runs], are the runs drawn by each resample, and each run's share of
    the n - 1 draws, 1 for a single run.
    """

    name: str
    runs: tuple[Sums, ...]
    sums: Sums
    picks: IntArray
    shares: Float64

    @staticmethod
    def of(name: str, runs: Sequence[Sums], picks: IntArray) -> "Entrant":
        """Combines runs, given the draws of each resample: indices into `runs`, of shape [resamples, runs]."""
        drawn = picks[:, : max(len(runs) - 1, 1)]
        shares = np.stack([(drawn == run).mean(axis=1) for run in range(len(runs))], axis=1)
        means = combine_sums(name, runs, lambda stacked: stacked.mean(axis=0))
        return Entrant(name=name, runs=tuple(runs), sums=means, picks=picks, shares=shares)

    @staticmethod
    def drawn(name: str, runs: Sequence[Sums], *, num_resamples: int, rng: np.random.Generator) -> "Entrant":
        """Combines runs and draws from them with `rng`, which comes from `run_generator` and serves all entrants."""
        return Entrant.of(name, runs, rng.integers(0, len(runs), (num_resamples, len(runs))))

    @staticmethod
    def single(sums: Sums, num_resamples: int) -> "Entrant":
        """An entrant of one run."""
        return Entrant.of(sums.name, (sums,), np.zeros((num_resamples, 1), np.int64))


def run_generator(seed: int) -> np.random.Generator:
    """Generator of the draws of runs; its stream is independent of that of the prompts."""
    return np.random.default_rng([seed, 1])


def make_entrants(
    tested: Sequence[Sums], groups: Sequence[SeedGroup], *, num_resamples: int, seed: int
) -> tuple[Entrant, ...]:
    """Combines the runs of each group; the others stay single. A group takes the place of its first member."""
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
            entrants.append(Entrant.single(sums, num_resamples))
    return tuple(entrants)


@dataclass(frozen=True, slots=True, kw_only=True)
class References:
    """Baselines and bound, on the grid of the controllers that are compared with them."""

    autoregressive: Sums
    best_fixed: Sums
    clairvoyant: Sums


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerMetrics:
    """One controller's figures in one group.

    Attributes:
        throughput: Decoded tokens per second.
        speedup_vs_ar: Over plain decoding.
        geomean_vs_ar: Geometric mean over compressions.
        acceptance_rate: Accepted over tested; None if nothing was drafted.
        headroom_share: (throughput - best fixed) / (clairvoyant - best fixed); None if these differ by less than 1 %.
        seeds_iqm: Interquartile mean over seeds of the geometric mean over the best fixed gamma; None for a single run.
    """

    controller: str
    throughput: float
    speedup_vs_ar: Interval
    speedup_vs_best_fixed: Interval
    geomean_vs_ar: Interval
    geomean_vs_best_fixed: Interval
    tokens_per_step: float
    drafted_per_token: float
    acceptance_rate: float | None
    mean_gamma: float
    headroom_share: float | None
    seeds_iqm: Interval | None = None


def measure(entrant: Entrant, group: Group, references: References, counts: Float64) -> ControllerMetrics:
    """Computes an entrant's figures, with intervals over prompts and seeds; `counts` is of the whole grid."""
    sums = entrant.sums
    tokens, steps, drafted, accepted, tested = (
        float(group.take(values).sum())
        for values in (sums.tokens, sums.steps, sums.drafted, sums.accepted, sums.tested)
    )
    by_gamma = group.take(sums.gammas).sum(axis=(0, 1))
    plain, fixed = (Entrant.single(s, len(counts)) for s in (references.autoregressive, references.best_fixed))
    vs_ar, geomean_vs_ar = speedups(entrant, plain, group, counts)
    vs_best_fixed, geomean_vs_best_fixed = speedups(entrant, fixed, group, counts)
    several = len(entrant.runs) >= MIN_SEEDS
    throughput = throughput_of(sums, group)
    return ControllerMetrics(
        controller=entrant.name,
        throughput=throughput,
        speedup_vs_ar=vs_ar,
        speedup_vs_best_fixed=vs_best_fixed,
        geomean_vs_ar=geomean_vs_ar,
        geomean_vs_best_fixed=geomean_vs_best_fixed,
        tokens_per_step=tokens / steps,
        drafted_per_token=drafted / tokens,
        acceptance_rate=accepted / tested if tested else None,
        mean_gamma=float(by_gamma @ np.arange(len(by_gamma)) / by_gamma.sum()),
        headroom_share=_headroom_share(throughput, group, references),
        seeds_iqm=_iqm_interval(entrant, references.best_fixed, group, counts) if several else None,
    )


def throughput_of(sums: Sums, group: Group) -> float:
    """Tokens per second."""
    return float(group.take(sums.tokens).sum() / group.take(sums.seconds).sum())


def _headroom_share(throughput: float, group: Group, references: References) -> float | None:
    fixed, bound = (throughput_of(s, group) for s in (references.best_fixed, references.clairvoyant))
    return (throughput - fixed) / (bound - fixed) if bound > fixed * (1 + LEAST_ROOM) else None


def _seconds(entrant: Entrant, group: Group) -> Float64:
    """Shape [resamples, runs, compressions]."""
    return np.stack([group.take(run.seconds) for run in entrant.runs])


def _has_interval(seconds: Float64) -> bool:
    return bool(np.count_nonzero(seconds.sum(axis=-1)) >= MIN_PROMPTS)


def _resampled(seconds: Float64, weights: Float64) -> Float64:
    return np.stack([weights @ run for run in seconds], axis=1)


def _resampled_seconds(entrant: Entrant, group: Group, counts: Float64) -> Float64:
    """Shape [resamples, compressions]."""
    by_run = _resampled(_seconds(entrant, group), counts[:, group.prompts])
    seconds: Float64 = np.einsum("bs,bsc->bc", entrant.shares, by_run)
    return seconds


def speedups(entrant: Entrant, baseline: Entrant, group: Group, counts: Float64) -> tuple[Interval, Interval]:
    """Speed-up as a ratio of sums, and the geometric mean over compressions; runs of both are drawn independently."""
    plain, ours = (group.take(e.sums.seconds) for e in (baseline, entrant))
    ratio = float(plain.sum() / ours.sum())
    geomean = float(geometric_mean(plain.sum(axis=0) / ours.sum(axis=0)))
    if not _has_interval(ours):
        return Interval(estimate=ratio), Interval(estimate=geomean)
    with np.errstate(divide="ignore", invalid="ignore"):
        above, below = (_resampled_seconds(e, group, counts) for e in (baseline, entrant))
        ratios, geomeans = above.sum(axis=1) / below.sum(axis=1), geometric_mean(above / below)
    return percentile_interval(ratio, ratios), percentile_interval(geomean, geomeans)


def _iqm_interval(entrant: Entrant, baseline: Sums, group: Group, counts: Float64) -> Interval:
    plain, ours = group.take(baseline.seconds), _seconds(entrant, group)
    by_run = geometric_mean(plain.sum(axis=0) / ours.sum(axis=1))
    estimate = float(interquartile_mean(by_run))
    if not _has_interval(ours.sum(axis=0)):
        return Interval(estimate=estimate)
    weights = counts[:, group.prompts]
    with np.errstate(divide="ignore", invalid="ignore"):
        above = (weights @ plain)[:, np.newaxis]
        speedups = geometric_mean(above / _resampled(ours, weights))
    # All n draws, as in Agarwal et al.: with fewer, the trimmed share would change.
    return percentile_interval(estimate, interquartile_mean(np.take_along_axis(speedups, entrant.picks, axis=1)))


def interquartile_mean(values: Float64) -> Float64:
    """Mean along the last axis without the lowest and highest quarter of the values, each rounded down.

    >>> interquartile_mean(np.array([9.0, 1.0, 2.0, 3.0, 100.0])).item()
    4.666666666666667
    """
    cut = values.shape[-1] // 4
    middle: Float64 = np.sort(values, axis=-1)[..., cut : values.shape[-1] - cut].mean(axis=-1)
    return middle


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Performance profile at one compression or "all"; `low` and `high` are pointwise, None with too few prompts.

    `shares`, of shape [taus], are those of prompts, over all runs, with a speed-up over the best fixed gamma of at
    least tau.
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
    """Computes one profile; in a group of several compressions a prompt counts once at each of them.

    `counts` is of the whole grid; `confidence` is the intended coverage at each single tau.
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
    """Shape [prompts, taus]: number of recordings that reach each tau."""
    with np.errstate(divide="ignore", invalid="ignore"):
        speedups = fixed / ours
    # What was not recorded is 0 / 0 and reaches nothing.
    reached: Float64 = (speedups[:, :, np.newaxis] >= np.array(TAUS) * (1.0 - _TIE)).sum(axis=1).astype(np.float64)
    return reached
