# SPDX-License-Identifier: Apache-2.0
"""Random requests, many of them given up half-way, whose text is held against plain decoding's."""

from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.divergence import explain
from benchmarks.random_policy import RandomPolicy
from speckv.decoding import DecodeStep, Engine, RequestContext, generate
from speckv.models import CausalModel
from speckv.observation import STOPPING_SCHEMA
from speckv.runtime.constant import ConstantGamma

KINDS = ("whole", "dropped", "closed", "mid-step", "begun anew", "raised")
"""How a request goes: to its end; left after some steps; as a generator that is closed; left inside a step; with steps
that are opened twice; ended by an error of whoever listens."""
CONTEXT = RequestContext(compression="fp16", cost_ratio=0.3)
BLIND = np.zeros(STOPPING_SCHEMA.size, np.float32)
"""What a random policy is shown."""
LISTED = 20


class GivenUpError(Exception):
    """Raised by a listener that has heard enough."""


class Traffic:
    """Sends one random request after another through a few engines, each of which is used again and again.

    Args:
        engines: Sampling mode -> engine under test.
        plain: Sampling mode -> an engine that decodes plainly what the first should have emitted.
        prompts: Name -> token ids.
        rng: Of every choice.
        max_new_tokens: Longest text.
        near_tie: Gap in units of rounding up to which a difference is a near-tie and no error.

    Attributes:
        requests: How many, by kind.
        checked_tokens: Tokens that were held against plain decoding's.
        near_ties: Differences within `near_tie`; the first ones, and their number under `counts`.
        divergences: The others.
        counts: Of both.
    """

    def __init__(
        self,
        engines: Mapping[str, Engine],
        plain: Mapping[str, Engine],
        prompts: Mapping[str, Sequence[int]],
        rng: np.random.Generator,
        *,
        max_new_tokens: int = 48,
        near_tie: float = 64.0,
    ) -> None:
        self._engines, self._plain, self._prompts, self._rng = engines, plain, prompts, rng
        self._max_new_tokens, self._near_tie = max_new_tokens, near_tie
        self._texts: dict[tuple[str, str], tuple[int, ...]] = {}
        self.requests: Counter[str] = Counter()
        self.checked_tokens = 0
        self.near_ties: list[dict[str, Any]] = []
        self.divergences: list[dict[str, Any]] = []
        self.counts = Counter(near_ties=0, divergences=0)

    def warm_up(self) -> None:
        """Decodes every prompt plainly, and makes a request of every kind in every engine.

        What is captured is captured first: it stays on the device for good, and is no growth.
        """
        longest = max(map(len, self._prompts.values())) + self._max_new_tokens
        for engine in (*self._engines.values(), *self._plain.values()):
            engine.capture_ahead(longest)
        for target in {id(engine.target): engine.target for engine in self._plain.values()}.values():
            if isinstance(target, CausalModel):
                target.captured(longest, range(1, 2), all_logits=True)  # buffers that explaining a difference takes
        for mode in self._engines:
            for name in self._prompts:
                self.text(mode, name)
            for kind in KINDS:
                self.request(mode, kind)

    def one(self) -> None:
        """Makes a random request."""
        modes = list(self._engines)
        self.request(modes[self._rng.integers(len(modes))], KINDS[self._rng.integers(len(KINDS))])

    def text(self, mode: str, name: str) -> tuple[int, ...]:
        """Plain decoding's text of a prompt, kept."""
        if (mode, name) not in self._texts:
            run = generate(
                self._plain[mode],
                self._prompts[name],
                ConstantGamma(0),
                context=CONTEXT,
                max_new_tokens=self._max_new_tokens,
                request=name,
            )
            self._texts[mode, name] = run.tokens
        return self._texts[mode, name]

    def request(self, mode: str, kind: str) -> None:
        """Makes one request of a kind and holds what it emitted against plain decoding's text."""
        names = list(self._prompts)
        name = names[self._rng.integers(len(names))]
        budget = int(self._rng.integers(1, self._max_new_tokens + 1))
        engine = self._engines[mode]
        if kind == "closed":
            steps = self._endless(engine, name, budget)
            for _ in range(int(self._rng.integers(1, 2 * budget + 2))):
                next(steps)
            steps.close()
        elif kind in ("whole", "raised"):
            self._generate(engine, name, budget, until=0 if kind == "whole" else self._steps())
        else:
            self._by_hand(engine, name, budget, kind)
        self.requests[kind] += 1
        if kind != "closed":  # which checks on its way
            self._check(mode, name, engine.tokens, budget, whole=kind in ("whole", "begun anew"))

    def _steps(self) -> int:
        return int(self._rng.integers(1, 6))

    def _policy(self) -> RandomPolicy:
        return RandomPolicy(self._rng, stop=float(self._rng.choice([0.0, 0.1, 0.4])))

    def _generate(self, engine: Engine, name: str, budget: int, *, until: int) -> None:
        heard = 0

        def listen(_: DecodeStep) -> None:
            nonlocal heard
            heard += 1
            if heard == until:
                raise GivenUpError

        try:
            generate(
                engine,
                self._prompts[name],
                self._policy(),
                context=CONTEXT,
                max_new_tokens=budget,
                request=name,
                on_step=listen,
            )
        except GivenUpError:
            return

    def _endless(self, engine: Engine, name: str, budget: int) -> Generator[DecodeStep, None, None]:
        """Steps of one request after another; the consumer may stop anywhere."""
        mode = next(mode for mode, known in self._engines.items() if known is engine)
        policy, finished = self._policy(), False
        try:
            while True:
                finished = False
                yield engine.start(self._prompts[name], max_new_tokens=budget, request=name)
                while engine.finish is None:
                    yield engine.step(policy.act(BLIND), lambda _: policy.go_on(BLIND))
                finished = True
                self._check(mode, name, engine.tokens, budget, whole=True)
        finally:
            if not finished:
                self._check(mode, name, engine.tokens, budget, whole=False)

    def _by_hand(self, engine: Engine, name: str, budget: int, kind: str) -> None:
        """Drives the parts of steps: to the end if they are begun anew, else leaves after or inside one."""
        policy, steps = self._policy(), self._steps()
        engine.start(self._prompts[name], max_new_tokens=budget, request=name)
        while engine.finish is None:
            engine.begin_step(policy.act(BLIND))
            self._draft(engine, policy)
            if kind == "begun anew" and self._rng.random() < 0.5:
                engine.begin_step(policy.act(BLIND))
                self._draft(engine, policy)
            steps -= 1
            if kind == "mid-step" and steps == 0:
                return
            engine.verify_draft()
            if kind == "dropped" and steps == 0:
                return

    def _draft(self, engine: Engine, policy: RandomPolicy) -> None:
        while engine.can_draft:
            engine.draft_token()
            if not policy.go_on(BLIND):
                return

    def _check(self, mode: str, name: str, tokens: Sequence[int], budget: int, *, whole: bool) -> None:
        plain = self.text(mode, name)[:budget]
        if not whole:
            plain = plain[: len(tokens)]
        self.checked_tokens += len(tokens)
        if tuple(tokens) == plain:
            return
        sampling = self._engines[mode].sampling
        where = explain(self._plain[mode].target, self._prompts[name], plain, tokens, sampling=sampling, request=name)
        assert where is not None
        kind = "near_ties" if where.gap_roundings <= self._near_tie else "divergences"
        self.counts[kind] += 1
        listed = self.near_ties if kind == "near_ties" else self.divergences
        if len(listed) < LISTED:
            listed.append({"mode": mode, "prompt": name, **where.to_dict()})
