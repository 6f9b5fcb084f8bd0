# SPDX-License-Identifier: Apache-2.0
"""What reward, discount, granularity and algorithm come to, at the same budget of environment steps.

    python -m benchmarks.rl_study --cost cpu-2core --out benchmarks/results/rl-study-cpu-2core.json
    python -m benchmarks.rl_study --cost cpu-2core --learning-curves

Each arm is a `speckv train` command line. Its record holds the curve on validation prompts and the speed-up on test
prompts over the best fixed gamma with its paired interval, for the best policy on validation prompts. Records are
written as they come: a run that was cut off goes on with what is missing. `--learning-curves` records samples seen
against throughput for PPO, supervised models and bandits instead, and draws them.
"""

import argparse
import logging
import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path

from benchmarks import learning_curves
from benchmarks.study_arms import Arm, run_arm
from benchmarks.study_store import Record, Store
from speckv.agents.runs.task import Task, load_task
from speckv.commands import train as program
from speckv.commands.app import compose_checked

logger = logging.getLogger(__name__)
RESULTS = Path(__file__).resolve().parent / "results"
MAX_PROCESSES = 2

REWARDS = ("throughput", "lambda_throughput", "time", "tokens_minus_cost", "tokens")
DISCOUNTS = (0.0, 0.9, 0.99, 1.0)
STOPPING_REWARDS = ("lambda_throughput", "time")
STOPPING_DISCOUNTS = (0.0, 0.9, 0.97, 0.99, 1.0)
LEARNERS = ("ppo", "a2c", "dqn", "qr_dqn", "recurrent_ppo")
STOPPING_LEARNERS = ("ppo", "a2c", "dqn", "qr_dqn")


def plan() -> tuple[Arm, ...]:
    """Every arm; one that two questions share is trained once."""
    arms = [
        Arm(name=f"ppo/per_step/{reward}/{discount:g}", overrides=(f"reward={reward}", f"agent.discount={discount}"))
        for reward in REWARDS
        for discount in DISCOUNTS
    ]
    arms += [
        Arm(
            name=f"ppo/per_token/{reward}/{discount:g}",
            overrides=("experiment=ppo_stopping", f"reward={reward}", f"agent.discount={discount}"),
        )
        for reward in STOPPING_REWARDS
        for discount in STOPPING_DISCOUNTS
    ]
    arms += [
        Arm(name=f"{name}/per_step/throughput/0", overrides=(f"agent={name}",)) for name in LEARNERS if name != "ppo"
    ]
    arms += [
        Arm(name=f"{name}/per_token/lambda_throughput/0.97", overrides=(f"experiment={name}_stopping",))
        for name in STOPPING_LEARNERS
        if name != "ppo"
    ]
    return tuple(arms)


def run_all(jobs: Mapping[str, Callable[[], Record]], store: Store, processes: int) -> None:
    """Runs what the store lacks, and writes each record when it is there."""
    missing = {key: job for key, job in jobs.items() if key not in store.records}
    logger.info("%d of %d are there already", len(jobs) - len(missing), len(jobs))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, MAX_PROCESSES), mp_context=context) as pool:
        running = {pool.submit(job): key for key, job in missing.items()}
        for done in as_completed(running):
            key, record = running[done], done.result()
            store.add(key, record)
            logger.info("%s: %s", key, record.get("error") or outcome(record))


def outcome(record: Record) -> str:
    """The best point of a curve, in a few words."""
    best = record["best"]
    return f"{best['vs_best_fixed']:.3f} x best fixed gamma on validation prompts after {best['step']:,.0f} samples"


def facts(task: Task, steps: int) -> Record:
    """What must be the same for records to stand beside each other."""
    return {
        "cost": task.cost.name,
        "cost_sha256": task.cost.sha256,
        "traces": Path(task.traces_name).name,
        "traces_sha256": task.train.sha256,
        "steps": steps,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the study, or the learning curves."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cost", default="cpu-2core")
    parser.add_argument("--out", type=Path, help="JSON; by default named after what is run and the cost table")
    parser.add_argument("--steps", type=int, default=300_000, help="environment steps of each run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--processes", type=int, choices=range(1, MAX_PROCESSES + 1), default=1)
    parser.add_argument("--num-resamples", type=int, default=10_000)
    parser.add_argument("--learning-curves", action="store_true")
    options = parser.parse_args(arguments)
    settings = program.settings_from(compose_checked(program.NAME, [f"cost={options.cost}"]))
    task = load_task(settings.data, settings.cost)
    title = "learning-curves" if options.learning_curves else "rl-study"
    out = options.out or RESULTS / f"{title}-{options.cost}.json"
    store = Store(out, benchmark=title, setting=facts(task, options.steps))
    if options.learning_curves:
        jobs = learning_curves.jobs(options.cost, options.steps, options.seeds, options.num_resamples)
        run_all(jobs, store, options.processes)
        learning_curves.draw(store.records, out.with_suffix(".png"), options.cost)
        return
    shared = {"cost": options.cost, "steps": options.steps, "num_resamples": options.num_resamples}
    run_all(
        {
            f"{arm.name}/seed{seed}": partial(run_arm, arm, seed=seed, evaluations=10, **shared)
            for seed in options.seeds
            for arm in plan()
        },
        store,
        options.processes,
    )


if __name__ == "__main__":
    main()
