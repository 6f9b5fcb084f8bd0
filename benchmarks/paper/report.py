# SPDX-License-Identifier: Apache-2.0
"""The study as text, JSON and a figure."""

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.paper.policies import constant, of_choices, of_runs
from benchmarks.paper.released import FIXED_GAMMA, OVERALL, POLICIES, PaperTable, Records
from benchmarks.paper.study import ConditionResult, PaperStudy, PolicyResult, Spread, run_study
from speckv.agents.runs.console import Console
from speckv.agents.runs.settings import EvaluateSettings, PaperSettings
from speckv.evaluation.plots import GREY, INK, PALETTE
from speckv.evaluation.report import save_figure
from speckv.evaluation.results import rounded
from speckv.evaluation.text import format_interval, render_table
from speckv.files import canonical_json, write_atomically

NOTES = (
    "Predicted tokens are the paper's score: the network's own acceptance rate * gamma + 1 at the gamma that a policy "
    "picks. The network that SpecKV-fast maximises scores all policies; no token is counted.",
    "As published, the network reads entropy and confidence of the very tokens whose number it decides on (leaky), was "
    'fitted to the tested steps too, and reads signals of a short draft as if they were of a long one. "Other steps" '
    'and "other prompts" predict each step with a network that never saw it, or any step of its prompt, in five folds. '
    '"Causal" reads the signals of the step before.',
    "Realised figures of constants and of the task oracle are those of the runs logged with that gamma. SpecKV-fast "
    "was never run: it is judged in the {num_largest} steps logged at gamma {largest}, where min(accepted, gamma) + 1 "
    "tokens is exact for every smaller gamma too, and charged the mean seconds of a step of its compression and gamma. "
    "The states are those that a constant {largest} meets, which it nearly is; judged there, Fixed-4 would come to "
    "{fixed_judged:.2f} tokens a step, where its own runs had {fixed_logged:.2f}. Leaky versions are charged as if "
    'they had known the signals without drafting. "Matched" is a check: all steps whose logged gamma is the choice.',
    "Best by time means: of most tokens a second on these very prompts, a gamma for each compression: {best_by_time}.",
    "The log holds gammas {gammas} alone: no plain decoding, so no speed-up over it can be said. Its runs had no "
    "key-value cache, so its seconds are not a serving engine's. It has {num_prompts} prompts; brackets in the last "
    "column are 95 % bootstrap intervals over them, paired; those behind predictions are the range over seeds "
    "{first_seed} to {last_seed}.",
)
_WIDTH = 120
_DPI = 150
_SHOWN = ("Fixed-4", "Fixed-best, by tokens a step")


def reproduce(paper: PaperSettings, settings: EvaluateSettings, console: Console) -> PaperStudy:
    """Runs the study, prints it and saves it: `speckv evaluate experiment=speckv_paper`.

    Args:
        settings: Bootstrap and output; recordings, cost and controllers are not used.

    Raises:
        DataError: if a file is missing or damaged; nothing is written then.
    """
    study = run_study(
        Path(paper.folder), num_seeds=paper.num_seeds, num_resamples=settings.num_resamples, seed=settings.seed
    )
    output = Path(settings.output) if settings.output else Path(settings.runs_dir) / "speckv-paper"
    save_study(output, study)
    console.write(render_study(study))
    console.write(f"saved to {output}")
    console.write(json.dumps({**headline(study), "output": str(output)}, sort_keys=True))
    return study


def save_study(folder: Path, study: PaperStudy) -> None:
    """Writes `results.json`, `results.txt` and `speckv_paper.png`."""
    write_atomically(folder / "results.json", canonical_json(study_json(study)))
    write_atomically(folder / "results.txt", render_study(study))
    save_figure(study_figure(study), folder / "speckv_paper.png")


def render_study(study: PaperStudy) -> str:
    """The study as plain text: tables and notes."""
    records = study.records
    steps, runs = records.steps, records.runs
    title = (
        "The SpecKV paper (arXiv:2605.02888) from its own files: "
        f"{len(steps.gamma)} steps, {len(runs.gamma)} runs, {len(records.prompt_tasks)} prompts"
    )
    facts = {
        "num_largest": int((steps.gamma == records.gammas[-1]).sum()),
        "largest": records.gammas[-1],
        "fixed_judged": _fixed_4_at_largest(records),
        "fixed_logged": of_runs(records, constant(records, np.array(FIXED_GAMMA))).tokens_per_step,
        "gammas": ", ".join(map(str, records.gammas)),
        "num_prompts": len(records.prompt_tasks),
        "best_by_time": ", ".join(f"{name} {gamma}" for name, gamma in study.best_by_time.items()),
        "first_seed": study.seeds[0],
        "last_seed": study.seeds[-1],
    }
    bullets = [textwrap.fill(f"- {note.format(**facts)}", _WIDTH, subsequent_indent="  ") for note in NOTES]
    notes = "\n".join(("How to read this.", *bullets))
    sections = (title, _published(study), _policies(study), _conditions(study), _signals(study), notes)
    return "\n\n".join(sections) + "\n"


def _fixed_4_at_largest(records: Records) -> float:
    """Tokens per step of Fixed-4 in the states in which SpecKV-fast is evaluated."""
    place = int(np.searchsorted(records.gammas, FIXED_GAMMA))
    return of_choices(records, np.full(len(records.steps.gamma), place)).tokens_per_step


def _published(study: PaperStudy) -> str:
    theirs, ours = study.published, study.recomputed
    header = ["compression"] + [word for policy in POLICIES for word in (policy, "ours")]
    rows = []
    for place, name in enumerate([*study.records.compressions, OVERALL]):
        pairs = zip(theirs.policies[place], ours.policies[place], strict=True)
        rows.append([name] + [f"{value:.2f}" for pair in pairs for value in pair])
    apart = np.abs(ours.policies / theirs.policies - 1).max()
    breakdown = np.abs(ours.breakdown / theirs.breakdown - 1).max()
    figures = (
        ("SpecKV-fast over Fixed-4", f"{theirs.improvement:+.1%}", f"{ours.improvement:+.1%}"),
        ("correlation of predicted and logged acceptance", f"{theirs.correlation:.4f}", f"{ours.correlation:.4f}"),
        ("mean squared error of it", f"{theirs.squared_error:.4f}", f"{ours.squared_error:.4f}"),
        ("train and test records", *(f"{t.num_train} / {t.num_test}" for t in (theirs, ours))),
    )
    return (
        f"1. The paper's table and ours: predicted tokens a step, seed {study.seeds[0]}\n"
        f"{render_table(header, rows)}\n"
        f"Largest difference: {apart:.2%} here, {breakdown:.2%} in the {ours.breakdown.size} figures by task.\n\n"
        f"{render_table(('', 'published', 'ours'), figures)}"
    )


def _spread(spread: Spread | None) -> str:
    return "" if spread is None else f"{spread.mean:.2f} [{spread.low:.2f}, {spread.high:.2f}]"


def _policies(study: PaperStudy) -> str:
    speeds = [f"{name} tok/s" for name in study.records.compressions]
    header = ("policy", "predicted", "realised", *speeds, "x best by time")

    def line(policy: PolicyResult) -> tuple[str, ...]:
        rates = (f"{rate:.1f}" for rate in policy.realised.tokens_per_s)
        realised = f"{policy.realised.tokens_per_step:.2f}"
        return policy.name, _spread(policy.predicted), realised, *rates, format_interval(policy.vs_best_fixed)

    rows = [line(p) for p in (*study.policies, *(c.policy for c in study.conditions))]
    return (
        f"2. The policies by what they realise, in tokens a step and on the paper's clock\n{render_table(header, rows)}"
    )


def _conditions(study: PaperStudy) -> str:
    largest = study.records.gammas[-1]
    header = (
        "SpecKV-fast",
        "corr",
        "Fixed-4 predicted",
        "predicted",
        f"picks {largest}",
        "realised",
        "matched",
        "steps",
    )
    rows = [
        (
            result.condition.name.removeprefix("SpecKV-fast, "),
            "seen" if result.correlation is None else f"{result.correlation.mean:.3f}",
            f"{result.predicted_fixed.mean:.2f}",
            f"{result.policy.predicted.mean:.2f}" if result.policy.predicted else "",
            f"{result.largest_share:.1%}",
            f"{result.policy.realised.tokens_per_step:.2f}",
            f"{result.matched_tokens:.2f}",
            f"{result.matched_steps:.0f}",
        )
        for result in study.conditions
    ]
    return f"3. SpecKV-fast under fairer conditions, mean over {len(study.seeds)} seeds\n{render_table(header, rows)}"


def _signals(study: PaperStudy) -> str:
    header = ("signal", "of the same step", "of the step before")
    rows = [(name, f"{r:+.2f}", f"{study.previous_step[name]:+.2f}") for name, r in study.same_step.items()]
    return f"4. Correlation of a draft's signals with the acceptance rate of a step\n{render_table(header, rows)}"


def _table_json(table: PaperTable, compressions: Sequence[str]) -> dict[str, object]:
    return {
        "tokens_per_step": {
            name: {policy: rounded(float(v)) for policy, v in zip(POLICIES, row, strict=True)}
            for name, row in zip([*compressions, OVERALL], table.policies, strict=True)
        },
        "improvement": rounded(table.improvement),
        "correlation": rounded(table.correlation),
        "squared_error": rounded(table.squared_error),
        "train_records": table.num_train,
        "test_records": table.num_test,
    }


def _figures(figures: Mapping[str, float | None]) -> dict[str, float | None]:
    return {name: rounded(value) for name, value in figures.items()}


def _spread_json(spread: Spread | None) -> dict[str, float | None] | None:
    return None if spread is None else _figures(asdict(spread))


def _policy_json(policy: PolicyResult, compressions: Sequence[str]) -> dict[str, object]:
    rates = policy.realised.tokens_per_s.tolist()
    return {
        "policy": policy.name,
        "predicted_tokens_per_step": _spread_json(policy.predicted),
        "realised_tokens_per_step": rounded(policy.realised.tokens_per_step),
        "tokens_per_s": _figures(dict(zip(compressions, rates, strict=True))),
        "vs_best_fixed_by_time": _figures(asdict(policy.vs_best_fixed)),
    }


def _condition_json(result: ConditionResult, compressions: Sequence[str]) -> dict[str, object]:
    return {
        **_policy_json(result.policy, compressions),
        "causal": result.condition.causal,
        "split": result.condition.split,
        "predicted_fixed_4": _spread_json(result.predicted_fixed),
        "correlation": _spread_json(result.correlation),
        "largest_gamma_share": rounded(result.largest_share),
        "matched_tokens_per_step": rounded(result.matched_tokens),
        "matched_steps": rounded(result.matched_steps),
    }


def study_json(study: PaperStudy) -> dict[str, object]:
    """The content of `results.json`; the same study gives the same bytes."""
    compressions = study.records.compressions
    return {
        "source": "SpecKV, arXiv:2605.02888; files of github.com/Amorfati123/SpecKV, results/",
        "seeds": list(study.seeds),
        "published": _table_json(study.published, compressions),
        "recomputed": _table_json(study.recomputed, compressions),
        "policies": [_policy_json(policy, compressions) for policy in study.policies],
        "conditions": [_condition_json(result, compressions) for result in study.conditions],
        "best_fixed_by_time": study.best_by_time,
        "signal_correlation": {
            "same_step": _figures(study.same_step),
            "previous_step": _figures(study.previous_step),
        },
    }


def headline(study: PaperStudy) -> dict[str, object]:
    """The main figures, for the last line of the output."""
    ours, theirs = study.recomputed, study.published
    names = [*study.records.compressions, OVERALL]
    last = study.conditions[-1].policy
    return {
        "published": dict(zip(POLICIES, theirs.policies[names.index(OVERALL)].tolist(), strict=True)),
        "recomputed": _figures(dict(zip(POLICIES, ours.policies[names.index(OVERALL)].tolist(), strict=True))),
        "improvement": {"published": theirs.improvement, "recomputed": rounded(ours.improvement)},
        "causal_vs_best_fixed_by_time": _figures(asdict(last.vs_best_fixed)),
    }


def bars(ax: Axes, heights: Mapping[str, Sequence[float]], groups: Sequence[str], colours: Sequence[str]) -> Axes:
    """Grouped bars, each labelled with its height at its foot, where no line passes.

    Args:
        heights: Series -> one height per group.
    """
    width = 0.8 / len(heights)
    top = max(max(values) for values in heights.values())
    for index, (name, values) in enumerate(heights.items()):
        places = np.arange(len(groups)) + (index - (len(heights) - 1) / 2) * width
        ax.bar(places, values, width * 0.94, color=colours[index], label=name)
        for place, value in zip(places, values, strict=True):
            ax.text(place, 0.02 * top, f"{value:.2f}", ha="center", va="bottom", fontsize=7, color="white")
    ax.set_xticks(np.arange(len(groups)), groups, fontsize=8)
    ax.grid(axis="y", color="#E3E3E3", linewidth=0.8)
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    return ax


def study_figure(study: PaperStudy) -> Figure:
    """Predicted and realised tokens per step, and tokens per second over the constant that is best by time."""
    chosen: list[PolicyResult] = [p for p in study.policies if p.name in _SHOWN]
    chosen += [study.conditions[0].policy, study.conditions[-1].policy]
    reference = next(p for p in study.policies if p.name == "Fixed-best, by tokens a second").realised.tokens_per_s
    figure = Figure(figsize=(13, 4.8), dpi=_DPI, layout="constrained")
    left, right = figure.subplots(1, 2)
    predicted = [p.predicted.mean if p.predicted else 0.0 for p in chosen]
    realised = [p.realised.tokens_per_step for p in chosen]
    heights = {"predicted by its own network": predicted, "realised": realised}
    bars(left, heights, [p.name.replace(", ", "\n") for p in chosen], (GREY, PALETTE[0]))
    left.set_ylabel("tokens per step")
    left.set_ylim(0, 1.18 * max(*predicted, *realised))
    left.legend(loc="upper left", ncols=2, frameon=False, fontsize=8)
    left.set_title("What the paper counts, and what is realised", fontsize=10, loc="left")
    speeds = {p.name: (p.realised.tokens_per_s / reference).tolist() for p in chosen}
    bars(right, speeds, study.records.compressions, PALETTE)
    right.axhline(1.0, color=INK, linewidth=1, linestyle="--")
    right.set_ylabel("tokens/s over the best fixed gamma (×)")
    right.set_xlabel("compression of the target")
    right.set_ylim(0, 1.35)
    right.legend(loc="upper left", ncols=2, frameon=False, fontsize=8)
    right.set_title("On the paper's own clock", fontsize=10, loc="left")
    gammas = ", ".join(map(str, study.records.gammas))
    figure.supxlabel(
        f"SpecKV paper's released log: {len(study.records.prompt_tasks)} prompts, gammas {gammas}, no key-value cache. "
        f"Means over {len(study.seeds)} seeds; with the paper's own, SpecKV-fast predicts "
        f"{study.recomputed.policies[-1, -1]:.2f}. Best fixed gamma: of most tokens/s, by compression.",
        fontsize=8,
    )
    return figure
