# SPDX-License-Identifier: Apache-2.0
"""Live requests: models and prompts of a run, decoded requests, and their log."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from speckv.agents.building import build_settings
from speckv.agents.runs.settings import TrainSettings
from speckv.agents.runs.task import load_cost
from speckv.cost import CostTable
from speckv.decoding import DecodeStep, Engine, GenerationResult, RequestContext, SamplingConfig, generate
from speckv.envs.live import LivePrompt
from speckv.errors import DataError
from speckv.files import write_atomically
from speckv.profiling.prompts import EXAMPLES, read_prompts
from speckv.runtime.constant import ConstantGamma
from speckv.types import Controller, StepOutcome

LEARN, MEASURE, COMPARE = "learn", "measure", "compare"
"""Phases of a run: learning, random actions that measure the observations' scale, and the comparison at the end."""
_WARM_UP_TOKENS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedPair:
    """Models ready to decode; `facts` has target, draft, compression, dtype and device."""

    engine: Engine
    encode: Callable[[str], list[int]]
    facts: Mapping[str, str]


Loader = Callable[[Mapping[str, object], SamplingConfig], LoadedPair]
"""(config group `model`, sampling) -> models."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveTask:
    """Models, prompts and cost table of a live run.

    Attributes:
        cost: For the observations' cost ratio and the rewards' unit; seconds come from the engine's clock.
        facts: Must be the same when the run resumes.
    """

    engine: Engine
    learning: tuple[LivePrompt, ...]
    heldout: tuple[LivePrompt, ...]
    cost: CostTable
    compression: str
    max_new_tokens: int
    facts: Mapping[str, object]

    @property
    def context(self) -> RequestContext:
        """The static part of every request's observation."""
        return RequestContext(compression=self.compression, cost_ratio=self.cost.cost_ratio(self.compression))

    def describe(self) -> str:
        """The first screen of a run."""
        rows = {name: self.facts[name] for name in ("target", "draft", "compression", "dtype", "device")}
        rows["prompts"] = (
            f"{len(self.learning)} to learn from, {len(self.heldout)} held out; up to {self.max_new_tokens} tokens each"
        )
        rows["cost"] = (
            f"{self.cost.name} ({self.cost.kind}) for the observation and the rewards' unit; seconds are this machine's"
        )
        return "".join(f"{name:<11}  {value}\n" for name, value in rows.items())


def load_models(model: Mapping[str, object], sampling: SamplingConfig) -> LoadedPair:
    """Loads a pair of real models; raises what `choose_pair` and `load_pair` raise."""
    # Late, because transformers takes seconds to import and a wrong setting should not.
    from speckv.decoding import draft_source
    from speckv.models import load_pair
    from speckv.models.dtypes import dtype_name
    from speckv.models.pair import choose_pair

    pair = load_pair(choose_pair(model))
    draft = draft_source(pair)
    engine = Engine(pair.target, draft, eos_token_ids=pair.eos_token_ids, sampling=sampling)
    facts = {
        "target": _without_folders(pair.target.name),
        "draft": _without_folders(draft.name),
        "compression": pair.target.compression,
        "dtype": dtype_name(pair.target.dtype),
        "device": str(pair.target.device),
    }
    return LoadedPair(engine=engine, encode=pair.encode, facts=facts)


def _without_folders(name: str) -> str:
    """A hub's id is kept as it is.

    >>> _without_folders("~/weights/small.gguf[:10]"), _without_folders("owner/model")
    ('small.gguf[:10]', 'owner/model')
    """
    return name.rsplit("/", 1)[-1] if name.startswith(("/", ".", "~")) else name


def load_live_task(settings: TrainSettings, load: Loader) -> LiveTask:
    """Reads prompts and cost table, then loads the models.

    Raises:
        DataError: if no prompt is left to learn from, or none for the comparison.
        CostTableError: if the cost table cannot be read or lacks the compression.
    """
    live, budget = settings.live, settings.env.budget
    assert live is not None
    assert budget is not None
    cost = load_cost(settings.cost)
    compression = str((settings.model or {}).get("compression", "fp16"))
    cost.require((compression,))
    prompts = read_prompts(live.prompts if live.prompts is not None else [EXAMPLES])
    pair = load(settings.model or {}, build_settings(SamplingConfig, live.sampling, "live.sampling"))

    def encode(split: str) -> tuple[LivePrompt, ...]:
        encoded = (
            LivePrompt(prompt_id=p.prompt_id, tokens=tuple(pair.encode(p.text))) for p in prompts if p.split == split
        )
        return tuple(prompt for prompt in encoded if len(prompt.tokens) <= live.max_prompt_tokens)

    learning, heldout = encode("train"), encode("test")[: live.heldout]
    if not learning or (live.heldout and not heldout):
        raise DataError(
            "Expected train prompts to learn from and test prompts to compare on, of at most "
            f"{live.max_prompt_tokens} tokens, got {len(learning)} and {len(heldout)}. Add some, name their split, or "
            "leave the comparison out with live.heldout=0."
        )
    text = json.dumps([[p.prompt_id, list(p.tokens)] for p in (*learning, *heldout)])
    return LiveTask(
        engine=pair.engine,
        learning=learning,
        heldout=heldout,
        cost=cost,
        compression=compression,
        max_new_tokens=budget,
        facts={
            **pair.facts,
            "decides": settings.env.decides,
            "max_new_tokens": budget,
            "prompts_sha256": hashlib.sha256(text.encode()).hexdigest(),
            "sampling": dict(live.sampling),
        },
    )


@dataclass(slots=True, kw_only=True)
class DecodedRequest:
    """Sums over a request's decode steps, the prefill left out; controller time is included only under `generate`."""

    number: int
    prompt_id: str
    phase: str
    arm: str
    num_steps: int = 0
    emitted: int = 0
    drafted: int = 0
    accepted: int = 0
    seconds: float = 0.0
    reward: float = 0.0

    def add(self, outcome: StepOutcome) -> None:
        """Adds a decode step."""
        self.num_steps += 1
        self.emitted += outcome.num_emitted
        self.drafted += outcome.num_drafted
        self.accepted += outcome.num_accepted
        self.seconds += outcome.seconds

    def line(self, tokens: Sequence[int], finish: str | None) -> dict[str, object]:
        """The request's record in the log; `finish` is "eos", "length", or None for a request that was cut off."""
        return {
            "request": self.number,
            "prompt_id": self.prompt_id,
            "phase": self.phase,
            "arm": self.arm,
            "finish": finish,
            "num_steps": self.num_steps,
            "num_emitted": self.emitted,
            "num_drafted": self.drafted,
            "num_accepted": self.accepted,
            "seconds": round(self.seconds, 6),
            "tokens": list(tokens),
        }


def summarise(requests: Sequence[DecodedRequest]) -> dict[str, float]:
    """Rates over requests: sums first, then quotients.

    >>> one = DecodedRequest(
    ...     number=0, prompt_id="p", phase=LEARN, arm="a", num_steps=2, emitted=6, drafted=5, seconds=3.0
    ... )
    >>> summarise([one])
    {'tokens_per_s': 2.0, 'tokens_per_step': 3.0, 'mean_drafted': 2.5}
    """
    steps, emitted = sum(r.num_steps for r in requests), sum(r.emitted for r in requests)
    seconds, drafted = sum(r.seconds for r in requests), sum(r.drafted for r in requests)
    return {
        "tokens_per_s": emitted / seconds if seconds > 0 else 0.0,
        "tokens_per_step": emitted / max(steps, 1),
        "mean_drafted": drafted / max(steps, 1),
    }


class RequestLog:
    """A JSON Lines file with one line per request; `path` is None until the run folder is open."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path

    def append(self, record: Mapping[str, object]) -> None:
        """Adds a line in one write, so that no reader and no interruption leaves half of it."""
        assert self.path is not None
        line = json.dumps(record, sort_keys=True, allow_nan=False) + "\n"
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(file, line.encode())
        finally:
            os.close(file)

    def read(self) -> list[dict[str, object]]:
        """Reads every whole line; a crash may leave the last one incomplete."""
        if self.path is None or not self.path.is_file():
            return []
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def drop_from(self, number: int) -> None:
        """Drops requests from a number on and any comparison, which will be decoded again."""
        if self.path is None or not self.path.is_file():
            return
        kept = [r for r in self.read() if r["phase"] != COMPARE and int(str(r["request"])) < number]
        write_atomically(self.path, "".join(json.dumps(r, sort_keys=True) + "\n" for r in kept))


def warm_up(task: LiveTask) -> None:
    """Decodes a few tokens with and without drafts, because first calls allocate memory and choose kernels."""
    longest = max(len(prompt.tokens) for prompt in (*task.learning, *task.heldout))
    task.engine.capture_ahead(longest + task.max_new_tokens)
    for gamma in (0, 2):
        generate(
            task.engine,
            task.learning[0].tokens,
            ConstantGamma(gamma),
            context=task.context,
            max_new_tokens=min(_WARM_UP_TOKENS, task.max_new_tokens),
        )


def decode_request(
    task: LiveTask, controller: Controller, prompt: LivePrompt, decoded: DecodedRequest, log: RequestLog
) -> GenerationResult:
    """Decodes a prompt; an online controller learns, and `decoded` and the log are filled even where it is cut off."""
    prefilled = False

    def add_step(step: DecodeStep) -> None:
        nonlocal prefilled
        if prefilled:
            decoded.add(step.outcome)
        prefilled = True

    try:
        result = generate(
            task.engine,
            prompt.tokens,
            controller,
            context=task.context,
            max_new_tokens=task.max_new_tokens,
            request=prompt.prompt_id,
            on_step=add_step,
        )
    except BaseException:  # Ctrl-C too
        log.append(decoded.line(task.engine.tokens if prefilled else (), None))
        raise
    decoded.seconds = result.decode_s
    log.append(decoded.line(result.tokens, result.finish))
    return result
