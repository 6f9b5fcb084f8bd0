# SPDX-License-Identifier: Apache-2.0
"""A page about made-up runs, small enough for a second."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from omegaconf import OmegaConf

from speckv.agents.registry import AGENTS, TrainingData, agent_settings, make_controller
from speckv.agents.runs.settings import TrainSettings
from speckv.agents.runs.training import train
from speckv.evaluation.compare import Comparison, compare
from speckv.evaluation.curves import Curve
from speckv.report.content import PageTexts, ShownController, page_content
from speckv.traces import TraceSet
from speckv.types import Controller
from tests.fakes_runs import CapturedConsole, toy_settings, toy_traces
from tests.fakes_traces import make_cost_table

COST = replace(make_cost_table(), controller_s=0.001)
HOSTILE = "</script><script>window.hacked = 1</script><!-- \u2028 <b>bold</b>"
PIECES: Mapping[int, bytes] = {
    **{number: f" w{number}".encode() for number in range(60)},
    7: "é".encode()[:1],
    8: "é".encode()[1:],
    9: b"\n",
    10: b"</script><img src=x>",
}


def splits(num_prompts: int = 24) -> tuple[TraceSet, TraceSet]:
    traces = toy_traces(num_prompts)
    return traces.select(split="train"), traces.select(split="test")


def made(*names: str) -> list[Controller]:
    """Agents by name, with their default settings, on the toy recordings."""
    data = TrainingData(train=splits()[0], cost=COST, seed=0)
    settings = {"fixed": {"gamma": 2}}
    chosen = [(name, agent_settings({"name": name, **settings.get(name, {})})[1]) for name in names]
    assert all(not AGENTS[name].in_environment for name in names)
    return [make_controller(name, options, data) for name, options in chosen]


def compared(controllers: Sequence[Controller]) -> Comparison:
    train_set, test_set = splits()
    return compare(train=train_set, test=test_set, cost=COST, controllers=controllers, num_resamples=50)


def toy_content(
    controllers: Sequence[Controller],
    *,
    pieces: Mapping[int, bytes] = PIECES,
    prompt: str = HOSTILE,
    curve: Curve | None = None,
    per_task: int = 1,
) -> dict[str, object]:
    _, test_set = splits()
    return page_content(
        compared(controllers),
        [ShownController(controller=c, facts={"Folder": HOSTILE}, curve=curve) for c in controllers],
        test=test_set,
        cost=COST,
        texts=PageTexts(pieces=pieces, source="Made-up words.", prompts=dict.fromkeys(test_set.prompt_ids, prompt)),
        prompts_per_task=per_task,
    )


def toy_run(folder: Path, name: str, agent: Mapping[str, object]) -> Path:
    """A whole training run, as `speckv train` leaves it, beside its recordings and clock."""
    settings = toy_settings(folder, folder / name, agent=agent)
    train(settings, CapturedConsole(), config=config_of(settings), overrides=[])
    return folder / name


def config_of(settings: TrainSettings) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(asdict(settings)))
