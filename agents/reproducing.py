# SPDX-License-Identifier: Apache-2.0
"""What `evaluate.py experiment=speckv_paper` does: the SpecKV paper's figures, recomputed from its own files."""

import json
from pathlib import Path

from agents.runs.console import Console
from agents.settings import EvaluateSettings, PaperSettings
from speckv.evaluation.paper.content import headline
from speckv.evaluation.paper.render import render_study
from speckv.evaluation.paper.report import save_study
from speckv.evaluation.paper.results import Study
from speckv.evaluation.paper.study import run_study


def reproduce(paper: PaperSettings, settings: EvaluateSettings, console: Console) -> Study:
    """Runs the study, prints it, and saves it.

    Args:
        paper: Where its files are.
        settings: Bootstrap and output; recordings, cost and controllers play no part.
        console: Takes the tables.

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
