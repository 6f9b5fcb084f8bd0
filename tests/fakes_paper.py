# SPDX-License-Identifier: Apache-2.0
"""A folder like the one that the SpecKV paper released: random drafts, every rule of the format."""

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

COMPRESSIONS, TASKS, GAMMAS = ("fp16", "nf4"), ("code", "chat"), (2, 4, 6)
BUDGET = 40

Row = dict[str, object]


def _write(path: Path, rows: Sequence[Row]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _run(rng: np.random.Generator, gamma: int) -> Iterator[Row]:
    """One text: each token is a hit with the draft's own confidence, and a step ends at the first miss."""
    emitted, step = 0, 0
    while emitted < BUDGET:
        confidence = rng.uniform(0.3, 1.0, gamma)
        hits = rng.random(gamma) < confidence
        accepted = gamma if hits.all() else int(np.argmin(hits))
        yield {
            "step": step,
            "accepted": accepted,
            "acceptance_rate": round(accepted / gamma, 4),
            "tokens_produced": accepted + 1,
            "mean_draft_entropy": round(float(3 - 3 * confidence.mean()), 4),
            "mean_draft_confidence": round(float(confidence.mean()), 4),
            "max_draft_entropy": round(float(3 - 3 * confidence.min()), 4),
            "min_draft_confidence": round(float(confidence.min()), 4),
        }
        emitted, step = emitted + accepted + 1, step + 1


def write_paper(folder: Path, *, prompts_a_task: int = 3, draft_s: float = 0.02, seed: int = 0) -> Path:
    """Writes the folder.

    Args:
        folder: Made if missing.
        prompts_a_task: Prompts of each task.
        draft_s: Seconds of a drafted token; a verify pass takes 0.05.
        seed: Of everything.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    runs: list[Row] = []
    steps: list[Row] = []
    for compression in COMPRESSIONS:
        for gamma in GAMMAS:
            for task in TASKS:
                for number in range(prompts_a_task):
                    names: Row = {"compression": compression, "gamma": gamma, "task": task}
                    rows = [{**names, **row} for row in _run(rng, gamma)]
                    steps += rows
                    runs.append(
                        {
                            **names,
                            "prompt": f"{task} {number}",
                            "num_tokens": sum(int(str(row["tokens_produced"])) for row in rows),
                            "elapsed_sec": len(rows) * (0.05 + gamma * draft_s),
                            "num_steps": len(rows),
                        }
                    )
    _write(folder / "phase2_experiment_results.csv", runs)
    _write(folder / "phase2_step_results.csv", steps)
    cells = [(c, t) for c in COMPRESSIONS for t in TASKS]
    _write(
        folder / "phase2_optimal_gamma.csv",
        [{"compression": c, "task": t, "optimal_gamma": 2 if t == "chat" else 6} for c, t in cells],
    )
    policies = {"Fixed-4": 3.0, "Fixed-best": 4.0, "Task-oracle": 3.5, "SpecKV-fast": 4.5}
    _write(
        folder / "paper_table1_policy_comparison.csv",
        [{"compression": name, **policies} for name in (*COMPRESSIONS, "Overall")],
    )
    _write(
        folder / "paper_table2_detailed_breakdown.csv",
        [{"compression": c, "task": t, "Fixed-4": 3.0, "SpecKV": 4.5} for c, t in cells],
    )
    figures = {
        "dataset": {"train_records": 0, "test_records": 0},
        "predictor": {"fast_test_corr": 0.7, "fast_test_mse": 0.1},
        "results": {"overall_improvement_pct": 50.0},
    }
    (folder / "paper_numbers.json").write_text(json.dumps(figures), encoding="utf-8")
    return folder
