# SPDX-License-Identifier: Apache-2.0
"""One live request under a controller, written down whether it ends or is cut off."""

from agents.runs.live.decoded import Decoded, DecodedLog
from agents.runs.live.task import LiveTask
from envs.live import LivePrompt
from speckv.decoding import DecodeStep, GenerationResult, generate
from speckv.runtime.constant import ConstantGamma
from speckv.types import Controller

_WARM_UP_TOKENS = 6


def warm_up(task: LiveTask) -> None:
    """Decodes a few tokens plainly and with drafts: first calls allocate and choose kernels, and would teach nonsense.

    Captures what requests will need, too, those of the comparison included.

    Raises:
        SpecKVError: as `generate`.
    """
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
    task: LiveTask, controller: Controller, prompt: LivePrompt, decoded: Decoded, log: DecodedLog
) -> GenerationResult:
    """Decodes a prompt with the one loop, in which a controller that learns does so.

    Args:
        task: Models and context.
        controller: Decides, and is told of every step.
        prompt: What to decode.
        decoded: Fresh; holds the request's sums afterwards, also where an error or a signal cuts it off.
        log: Takes the request's line, in both cases.

    Raises:
        SpecKVError: as `generate`, once the line is written.
    """
    prefilled = False

    def watch(step: DecodeStep) -> None:
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
            on_step=watch,
        )
    except BaseException:
        # Ctrl-C too: what was decoded until then stays on record.
        log.append(decoded.line(task.engine.tokens if prefilled else (), None))
        raise
    decoded.seconds = result.decode_s
    log.append(decoded.line(result.tokens, result.finish))
    return result
