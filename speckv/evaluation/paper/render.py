# SPDX-License-Identifier: Apache-2.0
"""The study as plain text."""

import textwrap

import numpy as np

from speckv.evaluation.paper.published import OVERALL, POLICIES
from speckv.evaluation.paper.realised import constant, of_choices, of_runs
from speckv.evaluation.paper.records import FIXED_GAMMA, Records
from speckv.evaluation.paper.results import PolicyResult, Spread, Study
from speckv.evaluation.table import format_interval, render_table

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


def render_study(study: Study) -> str:
    """Tables, and how to read them."""
    records = study.records
    steps, runs = records.steps, records.runs
    title = (
        "The SpecKV paper (arXiv:2605.02888) from its own files: "
        f"{len(steps.gamma)} steps, {len(runs.gamma)} runs, {len(records.prompt_tasks)} prompts"
    )
    facts = {
        "num_largest": int((steps.gamma == records.gammas[-1]).sum()),
        "largest": records.gammas[-1],
        "fixed_judged": _fixed_judged(records),
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


def _fixed_judged(records: Records) -> float:
    """Tokens a step of Fixed-4 in the states in which SpecKV-fast is judged."""
    place = int(np.searchsorted(records.gammas, FIXED_GAMMA))
    return of_choices(records, np.full(len(records.steps.gamma), place)).tokens_per_step


def _published(study: Study) -> str:
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


def _policies(study: Study) -> str:
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


def _conditions(study: Study) -> str:
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


def _signals(study: Study) -> str:
    header = ("signal", "of the same step", "of the step before")
    rows = [(name, f"{r:+.2f}", f"{study.previous_step[name]:+.2f}") for name, r in study.same_step.items()]
    return f"4. Correlation of a draft's signals with the acceptance rate of a step\n{render_table(header, rows)}"
