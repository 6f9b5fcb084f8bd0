# SPDX-License-Identifier: Apache-2.0
"""Every choice of token that one request makes, the target's and the draft's, on the device of the scores."""

from collections.abc import Sequence

import torch
from torch import Tensor

from speckv.decoding.protocols import Proposal
from speckv.decoding.sampling import SamplingConfig, choose, draw, gumbel_noise, request_seed, warp_logits
from speckv.decoding.verification import Verdict, verify_match, verify_rejection
from speckv.models.processors import Processors
from speckv.models.signals import Scores
from speckv.models.transfer import to_device, token_tensor


class Draws:
    """Chooses tokens as a sampling configuration says; a request's name and the seed fix every draw.

    Args:
        sampling: How tokens are chosen.
        request: Names the request.
        vocab_size: Tokens that are scored.
        processors: Applied to every score before a token is chosen, as `generate` does.
        text: The request's prompt and output, which the engine extends; read where there are processors.
    """

    def __init__(
        self,
        sampling: SamplingConfig,
        *,
        request: str,
        vocab_size: int,
        processors: Processors | None = None,
        text: Sequence[int] = (),
    ) -> None:
        self.sampling, self._vocab_size = sampling, vocab_size
        self.seed = request_seed(sampling.seed, request)
        self._made: torch.Generator | None = None
        self._processors, self._text = processors, text
        self._drafted: list[Tensor] = []

    def begin_step(self) -> None:
        """Before a step's first proposal."""
        self._drafted.clear()
        if self._processors is not None:
            self._processors.begin_draft()

    def commit(self, row: int) -> None:
        """After a verification: the token of one of its rows was emitted; rows come in order."""
        if self._processors is not None:
            self._processors.commit_row(row)

    def propose(self, scores: Scores, position: int) -> Proposal:
        """The draft's token from one row of scores, for an output position."""
        if self._processors is None:
            return self._propose(scores, position)
        device = scores.logits.device
        ids = torch.cat([token_tensor(self._text, device), *self._drafted])[None]
        proposal = self._propose(_processed(scores, self._processors.draft(ids, scores.logits.float())), position)
        self._drafted.append(proposal.token)
        return proposal

    def _propose(self, scores: Scores, position: int) -> Proposal:
        if self.sampling.mode != "rejection":
            return Proposal(self._choose(scores, position), scores.signals)
        probs = warp_logits(scores.logits, self.sampling).softmax(-1)
        return Proposal(draw(probs, self._generator(probs.device)), scores.signals, probs)

    def verify(self, proposals: list[Proposal], scores: Scores, position: int) -> Verdict:
        """Which proposals stay, and the target's token behind them.

        Args:
            proposals: The draft, oldest first.
            scores: Of the target; one row a proposal and one for the token behind them.
            position: Output position of the first row.
        """
        device = scores.best.device
        drafted = to_device(torch.cat([p.token for p in proposals]), device) if proposals else scores.best[:0]
        if self._processors is not None:
            prefix = token_tensor(self._text, device)[None]
            scores = _processed(scores, self._processors.verify(prefix, drafted, scores.logits.float()))
        if self.sampling.mode != "rejection":
            return verify_match(drafted, self._choose(scores, position))
        target = warp_logits(scores.logits, self.sampling).softmax(-1)
        probs = [p.probs for p in proposals if p.probs is not None]
        draft = to_device(torch.cat(probs), device).to(target.dtype) if probs else target[:0]
        return verify_rejection(drafted, draft, target, generator=self._generator(device))

    def _choose(self, scores: Scores, position: int) -> Tensor:
        if self.sampling.mode == "greedy":
            return scores.best
        noise = [gumbel_noise(self.seed, position + i, self._vocab_size) for i in range(len(scores.best))]
        device = scores.logits.device
        return choose(warp_logits(scores.logits, self.sampling), self.sampling, to_device(torch.stack(noise), device))

    def _generator(self, device: torch.device) -> torch.Generator:
        """The generator of this request's draws; made on first use, because the scores say where."""
        if self._made is None:
            self._made = torch.Generator(device).manual_seed(request_seed(self.seed, "draws"))
        return self._made


def _processed(scores: Scores, logits: Tensor) -> Scores:
    """Scores with processed logits; the signals stay those of the model's own distribution."""
    return Scores(logits, scores.signals, logits.argmax(-1))
