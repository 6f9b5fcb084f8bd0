# SPDX-License-Identifier: Apache-2.0
"""Counts texts that equal those of plain `generate`, over families of models and over settings of a call.

    python -m benchmarks.reliability --out benchmarks/results/reliability.json

Models are tiny and random, in float64; drafts are their targets plus noise; gammas are drawn at random, zeros among
them. A text is *right* if it equals that of plain `generate` token for token, *refused* if a clear error came before
its first token, and *wrong* otherwise. Recurrent families can only be refused.
"""

import argparse
import json
import logging
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

from speckv.errors import SpecKVError
from speckv.files import write_atomically
from speckv.integrations.transformers import control, custom_generate
from speckv.profiling.machine import describe_machine
from tests.fakes import VOCAB, tiny_qwen
from tests.fakes_families import FAMILIES, RECURRENT, WAYS, family_pair, plain_text, random_policy, random_prompt
from tests.fakes_requests import PROMPT_LENGTH, REFUSED, SERVED

LENGTHS = (5, 30, 12, 22)
NEW = 32
CALL = {"max_new_tokens": 24, "do_sample": False}
TRANSFORMERS = ("Assisted decoding requires", "assisted generate", "stateful models", "requires a cache")
"""How transformers' own refusals of assisted generation read."""

logger = logging.getLogger(__name__)
Counts = dict[str, dict[str, Counter[str]]]


def judged(expected: Sequence[object], decode: Callable[[], Sequence[object]]) -> Counter[str]:
    """Texts that are right, refused or wrong.

    Args:
        expected: Those of plain `generate`.
        decode: Gives ours, or raises.
    """
    try:
        found = decode()
    except Exception as error:  # whatever else it is, it is counted as wrong
        clear = isinstance(error, SpecKVError) or any(text in str(error) for text in TRANSFORMERS)
        if not clear:
            logger.info("%s: %s", type(error).__name__, error)
        return Counter({"refused" if clear else "wrong": len(expected)})
    return Counter("right" if text == other else "wrong" for text, other in zip(found, expected, strict=True))


def of_families(seeds: int) -> Counts:
    """Counts of each family and way to decode."""
    prompts = [random_prompt(length) for length in LENGTHS]
    found: Counts = {}
    for name, make in {**FAMILIES, **RECURRENT}.items():
        target, draft = family_pair(make)
        texts = [plain_text(target, prompt, NEW) for prompt in prompts]
        found[name] = {way: Counter() for way in WAYS}
        for way, decode in WAYS.items():
            for seed in range(seeds):
                found[name][way] += judged(texts, partial(decode, target, draft, prompts, NEW, seed))
        logger.info("%s: %s", name, {way: dict(count) for way, count in found[name].items()})
    return found


def of_requests(seeds: int) -> Counts:
    """Counts of each setting of a call, by our engine behind `generate` and under `control`."""
    target: Any = tiny_qwen(0)
    draft = tiny_qwen(1, like=target, noise=0.008)
    options: dict[str, Callable[[list[int]], Mapping[str, Any]]] = dict(SERVED)
    options |= {name: partial(_same, given) for name, (given, _) in REFUSED.items()}
    found: Counts = {}
    for name, make in options.items():
        found[name] = {"custom_generate": Counter(), "control": Counter()}
        for seed in range(seeds):
            ids = torch.randint(1, VOCAB, (1, PROMPT_LENGTH), generator=torch.Generator().manual_seed(seed))
            free = target.generate(ids, **CALL)[0].tolist()
            try:
                plain = _tokens(target.generate(ids, **{**CALL, **make(free)}))
            except ValueError:  # plain `generate` refuses it itself
                continue
            for way in found[name]:
                decode = partial(_ours, way, target, draft, ids, make(free), seed)
                found[name][way] += judged([plain], decode)
        logger.info("%s: %s", name, {way: dict(count) for way, count in found[name].items()})
    return found


def _same(given: Mapping[str, Any], free: list[int]) -> Mapping[str, Any]:
    del free
    return given


def _ours(
    way: str, target: Any, draft: Any, ids: torch.Tensor, options: Mapping[str, Any], seed: int
) -> list[list[list[int]]]:
    policy, given = random_policy(seed), {**CALL, **options}
    if way == "custom_generate":
        mine = {"custom_generate": custom_generate, "draft_model": draft, "policy": policy}
        return [_tokens(target.generate(ids, **given, **mine))]
    with control(target, draft, policy):
        return [_tokens(target.generate(ids, **{"assistant_model": draft, **given}))]


def _tokens(output: Any) -> list[list[int]]:
    found: list[list[int]] = (output if isinstance(output, torch.Tensor) else output.sequences).tolist()
    return found


def main() -> int:
    """Runs both and writes the record; fails if any text was wrong."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    record = {
        "command": f"python -m benchmarks.reliability --seeds {options.seeds}",
        "machine": describe_machine(),
        "transformers": transformers.__version__,
        "families": of_families(options.seeds),
        "requests": of_requests(options.seeds),
    }
    write_atomically(options.out, json.dumps(record, indent=1) + "\n")
    parts: tuple[Counts, ...] = (record["families"], record["requests"])  # type: ignore[assignment]
    total = sum((count for part in parts for ways in part.values() for count in ways.values()), Counter[str]())
    logger.info("%s", dict(total))
    return 1 if total["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
