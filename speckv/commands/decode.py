# SPDX-License-Identifier: Apache-2.0
"""`speckv decode "PROMPT" controller=RUN`: live decoding, with tokens coloured by their source.

The first argument is the prompt; `-` stands for standard input and `prompt_file=FILE` for a file. On a terminal tokens
are coloured, rejected drafts are shown, and control characters are replaced; elsewhere standard output is the exact
answer and one newline. The summary is logged to standard error.
"""

import io
import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from omegaconf import DictConfig
from rich.console import Console
from rich.segment import Segment, Segments
from rich.style import Style

from speckv.commands.app import plain, quoted, setting_names
from speckv.commands.detokenizing import Detokenizer
from speckv.cost import CostTable, require_single_request
from speckv.decoding import DecodeStep, Engine, GenerationResult, RequestContext, SamplingConfig, draft_source, generate
from speckv.errors import ConfigError, DataError
from speckv.models import ModelPair, load_pair
from speckv.models.device import use_threads
from speckv.models.pair import choose_pair
from speckv.profiling.machine import busy_cores, describe_machine
from speckv.runtime import Policy
from speckv.runtime.constant import ConstantGamma
from speckv.runtime.matching import warn_of_differences, warn_of_load, warn_of_machine, warn_of_no_gain
from speckv.runtime.shipped import WORD, shipped_for
from speckv.types import StoppingController

logger = logging.getLogger(__name__)
STANDARD_INPUT = "-"
FILE = "prompt_file="
USAGE = 'speckv decode "PROMPT" [key=value ...], with "-" or prompt_file=FILE in place of "PROMPT"'
STYLES = {
    "accepted": Style(color="green"),
    "rejected": Style(color="red", strike=True),
    "target": Style(bold=True),
}
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Control characters except tab and newline."""


def overrides(arguments: Sequence[str]) -> list[str]:
    """Turns the first argument, the prompt, into an override; the others are overrides.

    Raises:
        ConfigError: if there is no prompt, more than one, or it is not UTF-8.
        DataError: if standard input or the file is missing or not UTF-8.
    """
    if not arguments:
        raise ConfigError(f"Expected a prompt first: {USAGE}.")
    first, *rest = arguments
    for argument in rest:
        if argument == STANDARD_INPUT or argument.startswith((FILE, "prompt=")):
            raise ConfigError(f"Expected one prompt, got {argument[:100]!r} after the first argument: {USAGE}.")
    if first.startswith(FILE):
        name = first.removeprefix(FILE)
        return [f"prompt={quoted(_read_file(name))}", f"{FILE}{quoted(name)}", *rest]
    text = _read_standard_input() if first == STANDARD_INPUT else first
    if re.search("[\ud800-\udfff]", text):
        raise ConfigError(
            "Expected a prompt in UTF-8, got bytes that are not. Convert it, or give it as prompt_file=FILE."
        )
    return [f"prompt={quoted(text)}", *rest]


def check(arguments: Sequence[str]) -> None:
    """Raises a ConfigError if the first argument is a setting, because the prompt was left out."""
    found = re.fullmatch(r"[+~]*([\w.@/-]+)=\S*", arguments[0]) if arguments else None
    if found and found[1] in setting_names("decode") and not arguments[0].startswith(FILE):
        raise ConfigError(
            f"Expected a prompt first, got the setting {arguments[0]!r}: {USAGE}. A prompt that reads like a setting "
            "can be given on standard input or in a file."
        )


def _read_file(name: str) -> str:
    try:
        content = Path(name).expanduser().read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"Expected {FILE}FILE to name a readable file, got {name!r}: {reason}.") from error
    return _text(content, name)


def _read_standard_input() -> str:
    stream = sys.stdin
    if stream is None:
        raise DataError(f"Expected a prompt on standard input, which is closed. Use {FILE}FILE.")
    binary = getattr(stream, "buffer", None)
    return _text(binary.read(), "standard input") if binary is not None else stream.read()


def _text(content: bytes, source: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"Expected a prompt in UTF-8, got byte 0x{content[error.start]:02x} at position {error.start} of {source}. "
            "Convert it, for example with iconv."
        ) from error


def run(config: DictConfig) -> None:
    """Decodes with the controller, then plainly, and compares."""
    use_threads(config.threads)
    table = CostTable.load(config.cost.table).at_batch(config.cost.batch)
    chosen = choose_pair(plain(config.model))
    policy = find_policy(config.controller, chosen.draft)
    controller = policy.controller
    if isinstance(controller, StoppingController):
        require_single_request(controller.name, table.batch)
    compression = config.model.compression
    context = RequestContext(compression=compression, cost_ratio=table.cost_ratio(compression))
    logger.info("%s on %s with draft %s; loading", controller.name, Path(chosen.target).name, Path(chosen.draft).name)
    if not isinstance(controller, ConstantGamma):
        told = None if policy.times_itself else table
        warn_of_differences(policy, target=chosen.target, draft=chosen.draft_name, cost=told, compression=compression)
        if told is not None:
            warn_of_machine(told, describe_machine())
            warn_of_no_gain(policy, compression, told)
        warn_of_load(busy_cores(), os.cpu_count() or 1)
    pair = load_pair(chosen)
    engine = Engine(
        pair.target, draft_source(pair), eos_token_ids=pair.eos_token_ids, sampling=SamplingConfig(**config.sampling)
    )
    prompt = pair.encode(config.prompt)
    _prepare_output(sys.stdout)
    stream = _Stream(pair, Console(highlight=False, soft_wrap=True), show_rejected=config.show_rejected)
    arguments = {"context": context, "max_new_tokens": config.max_new_tokens, "request": "decode"}
    engine.capture_ahead(len(prompt) + config.max_new_tokens)
    engine.start(prompt, max_new_tokens=2)  # warm up: first calls allocate and choose kernels
    result = generate(engine, prompt, controller, on_step=stream.show, **arguments)
    stream.end()
    baseline = None
    if config.compare:
        logger.info("decoding the same prompt without a draft, to compare; compare=false leaves this out")
        baseline = generate(engine, prompt, ConstantGamma(0), **arguments)
    for line in summary(controller.name, result, baseline, compression, str(pair.target.dtype)):
        logger.info(line)


def find_policy(spec: str | int, draft: str) -> Policy:
    """Loads a run folder, a policy folder, a whole number (fixed gamma) or "shipped"."""
    text = str(spec)
    if text.isdigit():
        return Policy.of(ConstantGamma(int(text)))
    return Policy.load(shipped_for(draft) if text == WORD else Path(text))


def summary(
    name: str, result: GenerationResult, plain: GenerationResult | None, compression: str, dtype: str
) -> list[str]:
    """Lines about a decoded text, compared with plain decoding if that was done."""
    drafted = sum(step.outcome.num_drafted for step in result.steps)
    accepted = sum(step.outcome.num_accepted for step in result.steps)
    lines = [
        f"{compression} in {dtype.removeprefix('torch.')}: prompt read in {result.prefill.outcome.seconds:.1f} s; "
        f"{len(result.tokens)} tokens in {len(result.steps)} steps, {accepted} of {drafted} drafted tokens accepted"
    ]
    speed = f"{name} {result.tokens_per_s:.2f} tokens/s"
    if plain is None:
        return [*lines, speed]
    ratio = result.tokens_per_s / plain.tokens_per_s if plain.tokens_per_s else float("nan")
    same = "the same text" if plain.tokens == result.tokens else "another text (docs/numerics.md: near-ties)"
    return [*lines, f"{speed}, plain decoding {plain.tokens_per_s:.2f} tokens/s: {ratio:.2f} times as fast, {same}"]


def visible(text: str) -> str:
    r"""Escapes control characters other than tab and newline.

    >>> visible("a\x1b[31m\tb\x7f\x9b")
    'a^[[31m\tb^?\\x9b'
    """

    def escape(found: re.Match[str]) -> str:
        code = ord(found[0])
        return f"^{chr(code ^ 0x40)}" if code < 0x80 else f"\\x{code:02x}"

    return _CONTROL.sub(escape, text)


def _prepare_output(stream: TextIO) -> None:
    if not isinstance(stream, io.TextIOWrapper):
        return
    if stream.isatty():
        stream.reconfigure(errors="replace")
    else:
        stream.reconfigure(encoding="utf-8")


class _Stream:
    def __init__(self, pair: ModelPair, console: Console, *, show_rejected: bool) -> None:
        self._console, self._text = console, Detokenizer(pair.decode)
        self._show_rejected = show_rejected and console.is_terminal and console.color_system is not None

    def show(self, step: DecodeStep) -> None:
        """Rejected tokens are shown in the place where they were drafted."""
        num_accepted = step.outcome.num_accepted
        for token in step.tokens[:num_accepted]:
            self._write(self._text.push(token), "accepted")
        rejected = step.drafted[num_accepted:]
        if rejected and self._show_rejected:
            self._write(self._text.preview(rejected), "rejected")
        for token in step.tokens[num_accepted:]:
            self._write(self._text.push(token), "target")

    def end(self) -> None:
        self._write(self._text.finish(), "target")
        self._write("\n", None)

    def _write(self, text: str, style: str | None) -> None:
        if not text:
            return
        if self._console.is_terminal:
            piece = Segment(visible(text), STYLES[style] if style else None)
            self._console.print(Segments([piece]), end="", soft_wrap=True)
            return
        try:
            self._console.file.write(text)
            self._console.file.flush()
        except BrokenPipeError:
            self._console.on_broken_pipe()
