# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime GenAI under a policy: a decode loop of one's own, with the policy's session in it.

    python -m onnxruntime_genai.models.builder -m FOLDER -o TARGET -p fp32 -e cpu   # likewise the draft
    python examples/onnxruntime_genai_loop.py mine.speckv TARGET DRAFT 1,17,42

The last word is a prompt of token ids. Greedy; the text is compared with the target's own.
"""

import logging
import sys
from collections.abc import Sequence

import numpy as np
import onnxruntime_genai as og
from numpy.typing import NDArray

from speckv import runtime
from speckv.runtime.signals import signals_of_logits

MAX_NEW_TOKENS = 64
logger = logging.getLogger(__name__)


class Reader:
    """A model and its cache: reads tokens, hands out scores, forgets what was not kept."""

    def __init__(self, model: og.Model, max_length: int) -> None:
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=max_length, do_sample=False)
        self._generator = og.Generator(model, params)
        self.length = 0

    def read(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Returns one row of scores for each token."""
        self._generator.append_tokens(np.array([tokens], np.int32))
        self.length += len(tokens)
        scores = np.asarray(self._generator.get_output("logits"), np.float32)
        return scores.reshape(-1, scores.shape[-1])[-len(tokens) :]

    def rewind(self, length: int) -> None:
        """Forgets every token past `length`."""
        if length < self.length:
            self._generator.rewind_to(length)
            self.length = length


def decode(policy: runtime.Policy, target: Reader, draft: Reader, prompt: Sequence[int]) -> tuple[list[int], list[int]]:
    """Decodes greedily, and returns the new tokens and how many were drafted in each step."""
    session = policy.session(max_new_tokens=MAX_NEW_TOKENS)
    scores = target.read(prompt)[-1]
    text = [*prompt, int(scores.argmax())]
    session.start(*signals_of_logits(scores)[:2])
    drafted: list[int] = []
    while session.tokens_left:
        proposal: list[int] = []
        gamma = session.begin_step()
        while len(proposal) < gamma:
            scores = draft.read([*text, *proposal][draft.length :])[-1]
            proposal.append(int(scores.argmax()))
            if not session.go_on(*signals_of_logits(scores)):
                break
        rows = target.read([text[-1], *proposal])
        chosen = rows.argmax(axis=1).tolist()
        accepted = next((k for k, token in enumerate(proposal) if token != chosen[k]), len(proposal))
        text += [*proposal[:accepted], chosen[accepted]]
        # The newest token is in neither cache.
        target.rewind(len(text) - 1)
        draft.rewind(len(text) - 1)
        session.end_step(accepted, *signals_of_logits(rows[accepted])[:2], num_drafted=len(proposal))
        drafted.append(len(proposal))
    return text[len(prompt) :], drafted


def plain(target: Reader, prompt: Sequence[int]) -> list[int]:
    """The target's own greedy text."""
    scores, tokens = target.read(prompt)[-1], list[int]()
    while len(tokens) < MAX_NEW_TOKENS:
        tokens.append(int(scores.argmax()))
        scores = target.read(tokens[-1:])[-1]
    return tokens


def main() -> None:
    """Decodes both ways."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    folder, target_folder, draft_folder, words = sys.argv[1:5]
    policy, prompt = runtime.load(folder), [int(word) for word in words.split(",")]
    length = len(prompt) + MAX_NEW_TOKENS + policy.gamma_max + 1
    target, draft = og.Model(target_folder), og.Model(draft_folder)
    tokens, drafted = decode(policy, Reader(target, length), Reader(draft, length), prompt)
    logger.info("%d tokens in %d steps, drafted %s", len(tokens), len(drafted), drafted)
    logger.info("the target's own text: %s", tokens == plain(Reader(target, length), prompt))
    logger.info("fallbacks: %s", dict(policy.warnings))


if __name__ == "__main__":
    main()
