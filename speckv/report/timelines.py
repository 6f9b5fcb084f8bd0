# SPDX-License-Identifier: Apache-2.0
"""The prompts to be stepped through, as plain data: texts, every player's steps, and what all would do at each."""

from collections.abc import Mapping, Sequence

from speckv.cost import CompiledCost
from speckv.evaluation.results import rounded
from speckv.replay import CompiledTraces
from speckv.report.following import Chosen, Player, Step, follow
from speckv.report.texts import TokenTexts
from speckv.traces import TraceSequence

_CONFIDENCE = 1
"""Place of the confidence among a token's signals."""


def make_timelines(
    players: Sequence[Player],
    compiled: CompiledTraces,
    cost: CompiledCost,
    sequences: Sequence[int],
    *,
    texts: TokenTexts,
    prompts: Mapping[str, str],
) -> list[dict[str, object]]:
    """Follows every player through every sequence.

    Args:
        players: In the order of the page.
        compiled: The recordings.
        cost: The times.
        sequences: Which recordings.
        texts: Of their tokens.
        prompts: Prompt id -> text, as far as it is known.

    Returns:
        One object a sequence. `walks` holds the steps of each player in turn, each as a list:
        [position, emitted tokens, choices, rejected tokens]. A choice, one a player, is
        [gamma, drafted, accepted, milliseconds]; a rejected token is [text, the draft's confidence in per cent].
    """
    walks = [follow(player, players, compiled, cost, sequences) for player in players]
    return [
        _timeline(compiled.traces.sequences[sequence], [walk[row] for walk in walks], texts, prompts)
        for row, sequence in enumerate(sequences)
    ]


def _timeline(
    sequence: TraceSequence, walks: Sequence[Sequence[Step]], texts: TokenTexts, prompts: Mapping[str, str]
) -> dict[str, object]:
    confidence = sequence.draft_signals[:, _CONFIDENCE]
    return {
        "prompt_id": sequence.prompt_id,
        "prompt": prompts.get(sequence.prompt_id),
        "task": sequence.task,
        "compression": sequence.compression,
        "finish": sequence.finish,
        "texts": texts.emitted(sequence.tokens.tolist()),
        "confidence": [_per_cent(value) for value in confidence.tolist()],
        "walks": [
            [_step(step, step.chosen[number], sequence, texts) for step in walk] for number, walk in enumerate(walks)
        ],
    }


def _step(step: Step, own: Chosen, sequence: TraceSequence, texts: TokenTexts) -> list[object]:
    choices = [[c.gamma, c.num_drafted, c.num_accepted, rounded(1000 * c.seconds)] for c in step.chosen]
    drafted, signals = sequence.draft_from(step.position, own.num_drafted)
    kept = step.position + own.num_accepted
    words = texts.after(sequence.tokens[:kept].tolist(), drafted[own.num_accepted :].tolist())
    sure = [_per_cent(value) for value in signals[own.num_accepted :, _CONFIDENCE].tolist()]
    return [step.position, step.num_emitted, choices, [list(pair) for pair in zip(words, sure, strict=True)]]


def _per_cent(share: float) -> int:
    return round(100 * share)
