# SPDX-License-Identifier: Apache-2.0
"""Time of a decode step in this checkout over that in another one, in turns of one request.

    git worktree add /tmp/other COMMIT
    python -m benchmarks.between_versions --other /tmp/other --model smollm2.gguf --out benchmarks/results/steps.json

Each version runs in a process of its own, one decoding while the other waits. Drafts are the target's own first layers.
Without `--model` both decode with a tiny random model, where the loop takes most of a step. The figure is the ratio of
median step times, this checkout over the other, with the quartiles of the ratios of single turns.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

GAMMAS = (0, 2, 4, 8)
NEW = 33
LAYERS = 2
logger = logging.getLogger(__name__)


def worker(model: str) -> None:
    """Decodes one request for each gamma that comes in, and answers with its seconds a step.

    It runs on the other version too, so it uses nothing of this checkout.
    """
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from speckv.decoding import Engine
    from speckv.models import PairConfig, load_pair
    from speckv.models.pair import causal_model, first_layers

    if model:
        target = load_pair(PairConfig(target=model, draft="lookup", dtype="float32", device="cpu")).target
        draft = first_layers(target, 8)
    else:
        torch.manual_seed(0)
        config = Qwen2Config(
            vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=2, initializer_range=0.2, bos_token_id=None, eos_token_id=None,
        )  # fmt: skip
        where = {"compression": "fp16", "dtype": torch.float32, "device": torch.device("cpu")}
        target = causal_model(Qwen2ForCausalLM(config), name="tiny", **where)  # type: ignore[arg-type]
        draft = first_layers(target, LAYERS)
    engine = Engine(target, draft)
    answer("ready")
    for line in sys.stdin:
        engine.start(list(range(5, 69)), max_new_tokens=NEW)
        started, steps = time.perf_counter(), 0
        while engine.finish is None:
            engine.step(int(line))
            steps += 1
        answer(str((time.perf_counter() - started) / steps))


def answer(text: str) -> None:
    """Writes a line to the process that waits for it."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def begin(folder: Path, model: str) -> "subprocess.Popen[str]":
    """Starts a version's worker and waits until its model is loaded."""
    command = [sys.executable, str(Path(__file__).resolve()), "--worker", "--model", model]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    process = subprocess.Popen(command, cwd=folder, env=environment, stdin=-1, stdout=-1, text=True)
    assert process.stdout is not None
    while process.stdout.readline().strip() != "ready":
        if process.poll() is not None:
            raise SystemExit(f"The version in {folder} ended with status {process.returncode}.")
    return process


def ask(process: "subprocess.Popen[str]", gamma: int) -> float:
    """Seconds a step of one request."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{gamma}\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def compare(here: Path, other: Path, model: str, rounds: int) -> dict[str, dict[str, float]]:
    """Gamma -> median milliseconds a step of both versions, their ratio, and quartiles of the turns' ratios."""
    import numpy as np

    processes = [begin(folder, model) for folder in (here, other)]
    found = {}
    for gamma in GAMMAS:
        times = np.array([[ask(process, gamma) for process in processes] for _ in range(rounds + 2)])[2:]
        mine, theirs = np.median(times, axis=0)
        low, high = np.percentile(times[:, 0] / times[:, 1], [25, 75])
        figures = {"ms": 1e3 * mine, "other_ms": 1e3 * theirs, "ratio": mine / theirs, "q25": low, "q75": high}
        found[str(gamma)] = {name: round(float(value), 3) for name, value in figures.items()}
        logger.info("gamma %d: %s", gamma, found[str(gamma)])
    for process in processes:
        process.kill()
        process.wait()
    return found


def main() -> None:
    """Prints ratios and writes JSON."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--other", type=Path, help="a checkout of the version to compare with")
    parser.add_argument("--model", default="", help="GGUF file or folder; a tiny random model by default")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.worker:
        worker(options.model)
        return
    here = Path(__file__).resolve().parents[1]
    found = compare(here, options.other, options.model, options.rounds)
    if options.out:
        from speckv.profiling.machine import describe_machine

        versions = [_commit(folder) for folder in (here, options.other)]
        model = Path(options.model).stem or "tiny random"
        report: dict[str, Any] = {"commits": versions, "model": model, "gammas": found, "machine": describe_machine()}
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _commit(folder: Path) -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


if __name__ == "__main__":
    main()
