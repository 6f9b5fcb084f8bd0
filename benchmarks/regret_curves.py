# SPDX-License-Identifier: Apache-2.0
"""What online learners lose while they learn, and how long a change of the requests throws them back.

    python -m benchmarks.regret_curves --out benchmarks/results/regret.json

Each stream is made of test prompts and changes half-way: another task, or another compression of the target. Learners
begin untrained; scales of features, and the network behind `neural_linear`, come from train prompts. Regret is time
over the best constant gamma of each half in hindsight. Writes JSON, a picture beside it, and prints a table.
"""

import argparse
import logging
import platform
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from benchmarks.regret import TAIL, TOLERANCE, WINDOW, LearnerRegret, LineStyle, regret_lines
from benchmarks.regret_streams import STREAMS, Outcome, kept_regret, run_stream
from speckv import __version__
from speckv.evaluation.report import save_figure
from speckv.evaluation.results import rounded
from speckv.evaluation.text import render_table
from speckv.files import canonical_json, write_atomically
from speckv.traces import TraceSet, find_traces

logger = logging.getLogger(__name__)
TRACES = "qwen2.5-coder-greedy"
RESULT = Path(__file__).resolve().parent / "results" / "regret.json"
STYLES = {
    "ucb1": LineStyle(color="#0072B2"),
    "ucbspec": LineStyle(color="#0072B2", dashes="--"),
    "exp3spec": LineStyle(color="#0072B2", dashes=":"),
    "thompson": LineStyle(color="#0072B2", dashes="-."),
    "linucb": LineStyle(color="#D55E00"),
    "lints": LineStyle(color="#D55E00", dashes="--"),
    "neural_linear": LineStyle(color="#D55E00", dashes="-."),
    "hazard_thompson": LineStyle(color="#009E73"),
    "hazard_thompson_discounted": LineStyle(color="#009E73", dashes="--"),
    "tapout": LineStyle(color="#B1588C"),
    "calibrated_stopping": LineStyle(color="#B1588C", dashes="--"),
}
"""Learners, coloured by family: no context, linear in the observation, hazards, stopping rules."""


def as_json(outcome: Outcome) -> dict[str, object]:
    """The record of one stream."""
    return {
        "cost": outcome.stream.cost,
        "phases": [asdict(phase) for phase in outcome.stream.phases],
        "best_constants": [list(j.gammas) for j in outcome.judged],
        "reference_s": rounded(float(outcome.references.sum(axis=1).mean())),
        "kept_constant_regret_s": [rounded(v) for v in kept_regret(outcome)],
        "learners": {name: _learner_json(learner) for name, learner in outcome.learners.items()},
    }


def _learner_json(learner: LearnerRegret) -> dict[str, object]:
    shown = {
        "mean": learner.curves.mean(axis=0),
        "least": learner.curves.min(axis=0),
        "most": learner.curves.max(axis=0),
    }
    return {
        "first_half": rounded(learner.first),
        "second_half": rounded(learner.second),
        "over_clairvoyant": rounded(learner.over_clairvoyant),
        "from_the_start": {k: rounded(v) for k, v in asdict(learner.start).items()},
        "after_the_change": {k: rounded(v) for k, v in asdict(learner.change).items()},
        "regret_s": {name: [rounded(float(v)) for v in curve] for name, curve in shown.items()},
    }


def draw(outcomes: Sequence[Outcome], *, half: int, orders: int) -> Figure:
    """One panel a stream."""
    figure = Figure(figsize=(17.5, 5.6), dpi=130, layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(outcomes)))
    for panel, outcome in zip(panels, outcomes, strict=True):
        whole = float(outcome.references.sum(axis=1).mean())
        learners = outcome.learners
        shares = {name: learner.curves[:, -1].mean() / whole for name, learner in learners.items()}
        regret_lines(
            panel,
            {name: learner.curves for name, learner in learners.items()},
            STYLES,
            change=half,
            phases=(str(outcome.stream.phases[0]), str(outcome.stream.phases[1])),
            kept=np.array(kept_regret(outcome)),
            labels={name: f"{name.replace('_', '-')}  {percent(share)}" for name, share in shares.items()},
        )
        panel.set_title(f"{outcome.stream.title}\n", fontsize=11, loc="left")
    text = (
        "Time lost to the best constant gamma of each half in hindsight, which is the line at 0; dashed: the requests "
        f"change. Lines: mean of {orders} orders (seeds 0 to {orders - 1}) of {2 * half} requests, test prompts alone; "
        "bands: from the least to the greatest order. Every learner begins untrained. Percentages: of the constants' "
        "time in the whole stream. Seconds are modelled with the cost table named."
    )
    figure.supxlabel(textwrap.fill(text, 210), fontsize=8.5)
    return figure


def percent(share: float) -> str:
    """Renders a share with its sign.

    >>> percent(0.0123)
    '+1.2 %'
    """
    return f"{100 * share:+.1f} %".replace("-", "\N{MINUS SIGN}")


def render(outcome: Outcome) -> str:
    """One stream as a table."""
    header = ("learner", "1st half", "2nd half", "over clairvoyant", "final pace", "from start", "after change")

    def cells(name: str, r: LearnerRegret) -> tuple[str, ...]:
        took = (f"{part.requests} ({part.steps:.0f} steps)" for part in (r.start, r.change))
        shares = (percent(share) for share in (r.first, r.second, r.over_clairvoyant))
        return (name, *shares, f"{r.change.level:.3f}", *took)

    rows = [cells(name, learner) for name, learner in outcome.learners.items()]
    gammas = sorted({j.gammas for j in outcome.judged})
    title = (
        f"{outcome.stream.phases[0]} -> {outcome.stream.phases[1]} on {outcome.stream.cost}; best constants {gammas}"
    )
    return f"{title}\n{render_table(header, rows)}"


def main() -> None:
    """Runs the streams, prints tables, writes JSON and picture."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", nargs="+", choices=list(STREAMS), default=list(STREAMS))
    parser.add_argument("--learners", nargs="+", choices=list(STYLES), default=list(STYLES))
    parser.add_argument("--half", type=int, default=90, help="requests before the change, and after it")
    parser.add_argument("--orders", type=int, default=5, help="random orders, seeds 0 and up")
    parser.add_argument("--out", type=Path, default=RESULT, help="JSON; the picture gets the same name")
    arguments = parser.parse_args()
    half, orders = arguments.half, arguments.orders
    traces = TraceSet.load(find_traces(TRACES))
    outcomes = [run_stream(STREAMS[s], traces, arguments.learners, half=half, orders=orders) for s in arguments.streams]
    record = {
        "benchmark": "regret_curves",
        "command": f"python -m benchmarks.regret_curves {' '.join(sys.argv[1:])}".strip(),
        "traces_sha256": traces.sha256,
        "requests_a_half": half,
        "seeds": list(range(orders)),
        "recovery": {"window": WINDOW, "tail": TAIL, "tolerance": TOLERANCE},
        "streams": {name: as_json(outcome) for name, outcome in zip(arguments.streams, outcomes, strict=True)},
        "versions": {
            "speckv": __version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "matplotlib": mpl.__version__,
        },
    }
    write_atomically(arguments.out, canonical_json(record))
    save_figure(draw(outcomes, half=half, orders=orders), arguments.out.with_suffix(".png"))
    for outcome in outcomes:
        logger.info("\n%s", render(outcome))


if __name__ == "__main__":
    main()
