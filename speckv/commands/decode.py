# SPDX-License-Identifier: Apache-2.0
"""`python -m speckv decode "PROMPT" controller=RUN`: live decoding, each token coloured by where it came from."""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.text import Text

from speckv.commands.models import pair_config
from speckv.cost import CostTable
from speckv.decoding import DecodeStep, Engine, GenerationResult, RequestContext, SamplingConfig, draft_source, generate
from speckv.errors import ConfigError
from speckv.models import ModelPair, load_pair
from speckv.runtime.constant import ConstantGamma
from speckv.runtime.policy import SHIPPED
from speckv.runtime.stored import load_controller
from speckv.types import Controller

logger = logging.getLogger(__name__)
STYLES = {"accepted": "green", "rejected": "red strike", "target": "bold"}


def overrides(arguments: list[str]) -> list[str]:
    """Turns the leading prompt into an override; the rest are overrides already."""
    if not arguments or "=" in arguments[0].split(" ")[0]:
        raise ConfigError('Expected a prompt first: python -m speckv decode "PROMPT" [key=value ...].')
    escaped = arguments[0].replace("\\", "\\\\").replace("'", "\\'")
    return [f"prompt='{escaped}'", *arguments[1:]]


def run(config: DictConfig) -> None:
    """Decodes with the controller, then plainly, and compares."""
    if config.threads:
        torch.set_num_threads(config.threads)
    table = CostTable.load(config.cost.table).at_batch(config.cost.batch)
    controller = find_controller(config.controller, table.name)
    compression = config.model.compression
    context = RequestContext(compression=compression, cost_ratio=table.cost_ratio(compression))
    pair = load_pair(pair_config(config.model))
    engine = Engine(
        pair.target, draft_source(pair), eos_token_ids=pair.eos_token_ids, sampling=SamplingConfig(**config.sampling)
    )
    prompt = pair.encode(config.prompt)
    stream = _Stream(pair, Console(highlight=False, soft_wrap=True), show_rejected=config.show_rejected)
    arguments = {"context": context, "max_new_tokens": config.max_new_tokens, "request": "decode"}
    engine.capture_ahead(len(prompt) + config.max_new_tokens)
    engine.start(prompt, max_new_tokens=2)  # warm up: first calls allocate and choose kernels
    result = generate(engine, prompt, controller, on_step=stream.show, **arguments)
    stream.end()
    plain = generate(engine, prompt, ConstantGamma(0), **arguments) if config.compare else None
    for line in summary(controller.name, result, plain, compression, str(pair.target.dtype)):
        logger.info(line)


def find_controller(spec: str | int, cost_name: str) -> Controller:
    """Resolves a run folder, a policy folder, a whole number (fixed gamma) or "shipped".

    Raises:
        CheckpointError: if it is none of them.
    """
    text = str(spec)
    if text.isdigit():
        return ConstantGamma(int(text))
    return load_controller(SHIPPED / cost_name if text == "shipped" else Path(text))


def summary(
    name: str, result: GenerationResult, plain: GenerationResult | None, compression: str, dtype: str
) -> list[str]:
    """Lines about a run and the plain one beside it."""
    drafted = sum(step.outcome.num_drafted for step in result.steps)
    accepted = sum(step.outcome.num_accepted for step in result.steps)
    lines = [
        f"{name}, {compression} in {dtype.removeprefix('torch.')}: {len(result.tokens)} tokens in "
        f"{len(result.steps)} steps ({result.block_efficiency:.2f} a step), {accepted} of {drafted} drafted accepted, "
        f"{result.tokens_per_s:.2f} tokens/s, {result.controller_s / max(result.decode_s, 1e-9):.2%} of it deciding"
    ]
    if plain is not None:
        ratio = result.tokens_per_s / plain.tokens_per_s if plain.tokens_per_s else float("nan")
        same = (
            "the same text" if plain.tokens == result.tokens else "a different text (see docs/numerics.md on near-ties)"
        )
        lines.append(f"plain decoding: {plain.tokens_per_s:.2f} tokens/s, {same}; ratio {ratio:.2f}")
    return lines


@dataclass(slots=True)
class _Piece:
    text: str
    style: str


class _Stream:
    """Prints each step's tokens as they come."""

    def __init__(self, pair: ModelPair, console: Console, *, show_rejected: bool) -> None:
        self._pair, self._console, self._show_rejected = pair, console, show_rejected
        self._tokens: list[int] = []

    def show(self, step: DecodeStep) -> None:
        pieces = [
            _Piece(self._next(token), "accepted" if i < step.outcome.num_accepted else "target")
            for i, token in enumerate(step.tokens)
        ]
        rejected = list(step.drafted[step.outcome.num_accepted :])
        if rejected and self._show_rejected:
            at = min(step.outcome.num_accepted, len(pieces))
            pieces.insert(at, _Piece(self._pair.decode(rejected), "rejected"))
        for piece in pieces:
            self._console.print(Text(piece.text, style=STYLES[piece.style]), end="")

    def end(self) -> None:
        self._console.print()

    def _next(self, token: int) -> str:
        """Text that a token adds; a character split over tokens appears with its last one."""
        before = self._pair.decode(self._tokens[-8:]).rstrip("\ufffd")
        window = [*self._tokens[-8:], token]
        self._tokens.append(token)
        return self._pair.decode(window)[len(before) :].rstrip("\ufffd")
