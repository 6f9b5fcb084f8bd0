# SPDX-License-Identifier: Apache-2.0
"""What a live run decodes with: a loaded pair, prompts by split, a clock for observations and rewards."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from agents.building import build_settings
from agents.runs.settings import LiveSettings, TrainSettings
from agents.runs.task import load_cost
from envs.live import LivePrompt
from speckv.cost import CostTable
from speckv.decoding import Engine, RequestContext, SamplingConfig
from speckv.errors import DataError
from speckv.profiling.prompts import EXAMPLES, Prompt, read_prompts


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedPair:
    """Models ready to decode.

    Attributes:
        engine: Holds them, the sampling and the device's clock.
        encode: Text of a prompt -> token ids.
        facts: Target, draft, compression, dtype and device, by name.
    """

    engine: Engine
    encode: Callable[[str], list[int]]
    facts: Mapping[str, str]


Loader = Callable[[Mapping[str, object], SamplingConfig], LoadedPair]
"""The group `model` and how to sample -> models."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveTask:
    """What a live run has to do with.

    Attributes:
        engine: Decodes.
        learning: Train prompts.
        heldout: Test prompts of the comparison at the end.
        cost: Cost ratio of observations, unit of rewards; real seconds come from the engine's clock.
        compression: Of the target.
        max_new_tokens: Of a request.
        facts: What decides a run besides agent, cost and seed.
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
        """What controllers are told of every request."""
        return RequestContext(compression=self.compression, cost_ratio=self.cost.cost_ratio(self.compression))

    def describe(self) -> str:
        """The first screen of a run."""
        names = ("target", "draft", "compression", "dtype", "device")
        rows = [f"{name:<11}  {self.facts[name]}" for name in names]
        return "\n".join(
            [
                *rows,
                f"{'prompts':<11}  {len(self.learning)} to learn from, {len(self.heldout)} held out; "
                f"up to {self.max_new_tokens} tokens each",
                f"{'cost':<11}  {self.cost.name} ({self.cost.kind}) for the observation and the rewards' unit; "
                "seconds are this machine's\n",
            ]
        )


def load_models(model: Mapping[str, object], sampling: SamplingConfig) -> LoadedPair:
    """Loads a pair of real models.

    Raises:
        SpecKVError: whatever `choose_pair` and `load_pair` raise.
    """
    # Late, because transformers takes seconds to import and a wrong setting should not.
    from speckv.decoding import draft_source
    from speckv.models import load_pair
    from speckv.models.linear import dtype_name
    from speckv.models.pair import choose_pair

    pair = load_pair(choose_pair(model))
    draft = draft_source(pair)
    engine = Engine(pair.target, draft, eos_token_ids=pair.eos_token_ids, sampling=sampling)
    facts = {
        "target": _public(pair.target.name),
        "draft": _public(draft.name),
        "compression": pair.target.compression,
        "dtype": dtype_name(pair.target.dtype),
        "device": str(pair.target.device),
    }
    return LoadedPair(engine=engine, encode=pair.encode, facts=facts)


def _public(name: str) -> str:
    """A model's name without the folders of this machine; a hub's id as it is.

    >>> _public("~/weights/small.gguf[:10]"), _public("owner/model")
    ('small.gguf[:10]', 'owner/model')
    """
    return name.rsplit("/", 1)[-1] if name.startswith(("/", ".", "~")) else name


def load_live_task(settings: TrainSettings, live: LiveSettings, load: Loader) -> LiveTask:
    """Reads prompts and clock, then loads the models.

    Raises:
        DataError: if no prompt is left to learn from, or none to compare on where that is asked for.
        CostTableError: if the clock cannot be read or lacks the compression.
        SpecKVError: as `load`.
    """
    cost = load_cost(settings.cost)
    compression = str((settings.model or {}).get("compression", "fp16"))
    cost.require((compression,))
    prompts = read_prompts(live.prompts if live.prompts is not None else [EXAMPLES])
    sampling = build_settings(SamplingConfig, live.sampling, "live.sampling")
    pair = load(settings.model or {}, sampling)
    learning = _encoded(prompts, "train", pair, live)
    heldout = _encoded(prompts, "test", pair, live)[: live.heldout]
    if not learning or (live.heldout and not heldout):
        raise DataError(
            "Expected train prompts to learn from and test prompts to compare on, of at most "
            f"{live.max_prompt_tokens} tokens, got {len(learning)} and {len(heldout)}. Add some, say their split, or "
            "leave the comparison out with live.heldout=0."
        )
    assert settings.env.budget is not None
    text = json.dumps([[p.prompt_id, list(p.tokens)] for p in (*learning, *heldout)])
    facts: dict[str, object] = {
        **pair.facts,
        "decides": settings.env.decides,
        "max_new_tokens": settings.env.budget,
        "prompts_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "sampling": dict(live.sampling),
    }
    return LiveTask(
        engine=pair.engine,
        learning=learning,
        heldout=heldout,
        cost=cost,
        compression=compression,
        max_new_tokens=settings.env.budget,
        facts=facts,
    )


def _encoded(prompts: Sequence[Prompt], split: str, pair: LoadedPair, live: LiveSettings) -> tuple[LivePrompt, ...]:
    encoded = (
        LivePrompt(prompt_id=p.prompt_id, tokens=tuple(pair.encode(p.text))) for p in prompts if p.split == split
    )
    return tuple(prompt for prompt in encoded if len(prompt.tokens) <= live.max_prompt_tokens)
