# SPDX-License-Identifier: Apache-2.0
"""A policy: a controller with what a decode loop needs to run it, in memory and on disk.

A stored policy holds test vectors that are replayed at every loading. The reference page is docs/export.md.
"""

import copy
import json
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np

from speckv import __version__
from speckv.cost.times import LiveStepTimes
from speckv.errors import CheckpointError, ConfigError, SpecKVError
from speckv.observation import (
    DECAY,
    PRIOR_ACCEPTANCE,
    PRIOR_TOKENS,
    SCHEMA,
    STOPPING_SCHEMA,
    ObservationSchema,
    RequestMemory,
)
from speckv.runtime.constant import AcceptanceTable, ConstantGamma, ConstantPerCompression
from speckv.runtime.learned import LstmController, PolicyController
from speckv.runtime.session import HIDDEN, Session, shared
from speckv.runtime.shipped import named
from speckv.runtime.state import ControllerState, Storable
from speckv.runtime.storage import (
    CARD,
    WEIGHTS,
    make_script,
    play,
    read_card,
    read_weights,
    require_policy,
    write_policy,
)
from speckv.types import (
    BITS_PER_WEIGHT,
    GAMMA_MAX,
    Abstainer,
    Controller,
    FloatArray,
    InterleavedLearner,
    OnlineLearner,
    StoppingController,
    same_but_padding,
)

GROUP = "speckv.policy_kinds"
"""Entry points by which packages offer controllers: each is a function, kind -> class, or None for an unknown kind."""
MEMORY = {"decay": DECAY, "prior_acceptance": PRIOR_ACCEPTANCE, "prior_tokens": PRIOR_TOKENS}
"""Constants of the memory of a request."""
_CLASSES: Sequence[type[Storable]] = (
    ConstantGamma,
    ConstantPerCompression,
    AcceptanceTable,
    PolicyController,
    LstmController,
)
_OWN = {one.kind: one for one in _CLASSES}
"""Kind -> class of the controllers of this package."""
_GIVEN: dict[str, type[Storable]] = {}
"""Kinds that callers of `Policy.load` gave."""
_ENDLESS = 1 << 30
"""Budget, in tokens, of a text whose budget is unknown."""
_NEUTRAL_RATIO = 0.3
"""Cost ratio where none is known."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Policy:
    """A controller with everything that a decode loop needs to run it.

    Attributes:
        fallback: Compression -> gamma where the controller cannot decide, in tokens.
        learns: Whether it is updated from one request to the next.
        typical: Shape [features]; mean observation on the recordings, used in place of what a library does not show.
        cost_ratio: Compression -> one draft pass over one target pass, where it was trained.
        warnings: Reason -> how often the fallback was used, in all sessions.
    """

    name: str
    controller: Controller
    fallback: Mapping[str, int] = field(default_factory=dict)
    gamma_max: int = GAMMA_MAX
    learns: bool = False
    typical: FloatArray
    cost_ratio: Mapping[str, float] = field(default_factory=dict)
    trained_on: Mapping[str, Any] = field(default_factory=dict)
    warnings: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        """Checks ranges."""
        if not 0 <= self.gamma_max <= GAMMA_MAX:
            raise CheckpointError(f"Expected gamma from 0 to {GAMMA_MAX} tokens at most, got {self.gamma_max}.")
        if any(type(g) is not int or not 0 <= g <= self.gamma_max for g in self.fallback.values()):
            raise CheckpointError(
                f"Expected fallback gammas from 0 to {self.gamma_max} tokens, got {dict(self.fallback)}."
            )
        if self.typical.shape != (SCHEMA.size,) or not np.isfinite(self.typical).all():
            raise CheckpointError(f"Expected {SCHEMA.size} finite typical features, got shape {self.typical.shape}.")
        if any(not 0 < ratio < 100 for ratio in self.cost_ratio.values()):
            raise CheckpointError(f"Expected cost ratios above 0 and below 100, got {dict(self.cost_ratio)}.")
        if unknown := {*self.fallback, *self.cost_ratio} - set(BITS_PER_WEIGHT):
            raise CheckpointError(f"Expected compressions of {list(BITS_PER_WEIGHT)}, got {sorted(unknown)}.")

    @staticmethod
    def of(controller: Controller, *, learns: bool | None = None, **known: Any) -> "Policy":
        """Makes the policy of a controller; `known` are other attributes."""
        learner = isinstance(controller, OnlineLearner) and controller.learns
        controller = controller if learns is not False else _frozen(controller)
        known.setdefault("typical", _neutral())
        return Policy(
            name=known.pop("name", controller.name),
            controller=controller,
            learns=learner if learns is None else learns and learner,
            **known,
        )

    @property
    def granularity(self) -> str:
        """Returns "token" for a policy that also decides inside steps, else "step"."""
        return "token" if isinstance(self.controller, StoppingController) else "step"

    @property
    def times_itself(self) -> bool:
        """Whether it learns the times of steps while decoding."""
        return self.learns and isinstance(getattr(self.controller, "times", None), LiveStepTimes)

    @property
    def learns_acceptance(self) -> bool:
        """Whether it learns more than times, so that each outcome must be of its request's last decision."""
        return self.learns and bool(getattr(self.controller, "learns_acceptance", True))

    @property
    def interleaves(self) -> bool:
        """Whether steps of several sessions may interleave; with learners, only `InterleavedLearner` allows it."""
        return not self.learns or isinstance(self.controller, InterleavedLearner)

    @property
    def compressions(self) -> tuple[str, ...]:
        """Compressions that it was trained for; the first is a session's default."""
        return tuple(self.cost_ratio) or ("fp16",)

    def never_drafts(self, compression: str | None = None) -> bool:
        """Whether every decision is 0 at a compression; by default at that of a session."""
        controller = self.controller
        return isinstance(controller, Abstainer) and controller.never_drafts(compression or self.compressions[0])

    def session(
        self,
        *,
        max_new_tokens: int | None,
        compression: str | None = None,
        cost_ratio: float | None = None,
        vocab_size: int | None = None,
        hidden: Collection[str] = (),
        passes: bool = True,
        clock: Callable[[], float] = time.perf_counter,
    ) -> Session:
        """Opens a session for one request.

        Sessions of a policy that learns share its state, also those of several threads. Their steps may interleave only
        if it `interleaves`.

        Args:
            max_new_tokens: Token budget, the prefill's token included; None if unknown, which hides the budget.
            vocab_size: Of the target; if it differs from training by more than padding, all decisions are the fallback.
            hidden: Signals that the library lacks and typical values replace: "target", "draft", and "budget" where
                `max_new_tokens` is only a bound that few texts reach, such as the context's.
            passes: Whether the session is called right after each draft pass and the verification, so that it can time
                them apart; else it times whole steps.
            clock: What it times by, in seconds.
        """
        compression = compression or self.compressions[0]
        if compression not in BITS_PER_WEIGHT:
            raise ConfigError(f"Expected a compression of {list(BITS_PER_WEIGHT)}, got {compression!r}.")
        if unknown := set(hidden) - set(HIDDEN):
            raise ConfigError(f"Expected hidden to name some of {list(HIDDEN)}, got {sorted(unknown)}.")
        hidden = {*hidden, "budget"} if max_new_tokens is None else hidden
        trained, refuse = self.trained_on.get("vocab_size"), None
        if vocab_size is not None and trained is not None and not same_but_padding(vocab_size, trained):
            refuse = f"a vocabulary of {vocab_size} tokens, where the policy was trained on one of {trained}"
        ratio = cost_ratio if cost_ratio is not None else self.cost_ratio.get(compression, _NEUTRAL_RATIO)
        return Session(
            shared(self.controller) if self.learns else copy.deepcopy(self.controller),
            max_new_tokens=_ENDLESS if max_new_tokens is None else max_new_tokens,
            cost_ratio=ratio,
            bits_per_weight=BITS_PER_WEIGHT[compression],
            gamma_max=self.gamma_max,
            fallback=self.fallback.get(compression, self.fallback.get(self.compressions[0], 0)),
            warnings=self.warnings,
            hidden=hidden,
            typical=self.typical,
            refuse=refuse,
            passes=passes,
            clock=clock,
        )

    # -- on disk --------------------------------------------------------------------------------------------------

    def save(self, folder: Path | str) -> None:
        """Writes the policy's two files."""
        # A kind that is inherited is that of the base class, which would be loaded in place of this one.
        if not isinstance(self.controller, Storable) or "kind" not in vars(type(self.controller)):
            raise CheckpointError(f"Expected a controller of a kind that can be stored, got {self.controller!r}.")
        state = self.controller.state()
        script = make_script(self.compressions, depth=max(self.gamma_max, 1))
        card = {
            "speckv_version": __version__,
            "name": self.name,
            "kind": self.controller.kind,
            "settings": dict(state.settings),
            "compressions": list(state.compressions),
            "granularity": self.granularity,
            "gamma": {"min": 0, "max": self.gamma_max, "fallback": dict(self.fallback)},
            "learns": self.learns,
            # Lossless under rejection sampling: the token that ends a draft stays in it.
            "sampling_safe": True,
            "observation": {
                "schema": json.loads(self._schema.to_json()),
                "memory": MEMORY,
                "typical": dict(zip(SCHEMA.names, map(float, self.typical), strict=True)),
                "cost_ratio": dict(self.cost_ratio),
            },
            "trained_on": dict(self.trained_on),
            "test_vectors": {
                "requests": script,
                "decisions": play(script, self._restored(type(self.controller), state).session),
            },
        }
        write_policy(Path(folder), card, state.arrays)

    @property
    def _schema(self) -> ObservationSchema:
        return STOPPING_SCHEMA if self.granularity == "token" else SCHEMA

    def _restored(self, kind: type[Storable], state: ControllerState) -> "Policy":
        controller = _restore(kind, state, self.name)
        return replace(self, controller=controller if self.learns else _frozen(controller), warnings=Counter())

    @staticmethod
    def load(folder: Path | str, *, kinds: Mapping[str, type[Storable]] | None = None) -> "Policy":
        """Reads a policy and plays its test vectors; `kinds` adds controller classes to those of installed packages.

        "shipped" is the one that comes with SpecKV, "shipped-lookup" that for drafts by lookup.

        Raises:
            CheckpointError: if it is missing, damaged or of another version, or a test vector's decision differs.
            SchemaError: if it reads features that observations lack or define differently.
        """
        _GIVEN.update(kinds or {})
        folder = require_policy(named(folder))
        card = read_card(folder / CARD)
        arrays = read_weights(folder / WEIGHTS, card["weights_sha256"])
        try:
            kind = class_of(str(card["kind"]))
            schema = ObservationSchema.from_json(json.dumps(card["observation"]["schema"]))
            today = STOPPING_SCHEMA if card["granularity"] == "token" else SCHEMA
            schema.select_from(today)  # passes if every stored feature exists today
            state = ControllerState(
                settings=card["settings"],
                arrays=arrays,
                compressions=tuple(map(str, card["compressions"])),
                schema=None if schema.names == today.names else schema,
            )
            policy = _policy(card, _restore(kind, state, str(card["name"])), schema)
            played = play(card["test_vectors"]["requests"], policy._restored(kind, state).session)
        except ConfigError as error:
            raise CheckpointError(f"{folder}: {error} Export the policy again.") from error
        except SpecKVError as error:
            raise type(error)(f"{folder}: {error}") from error
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            text = " ".join(repr(error).split())[:300]
            raise CheckpointError(
                f"{folder}: a missing or malformed field ({text}). Export the policy again."
            ) from error
        if played != card["test_vectors"]["decisions"]:
            raise CheckpointError(
                f"{folder}: the policy decides otherwise here than where it was saved (test vectors differ). "
                "Export it again with this version of SpecKV."
            )
        return policy


load = Policy.load


def load_controller(path: Path | str, *, name: str | None = None) -> Controller:
    """Loads the controller of a run folder or of a policy's folder, under another name if one is given."""
    controller = Policy.load(path).controller
    controller.name = name or controller.name
    return controller


def named_apart(policies: Sequence[Policy], paths: Sequence[Path]) -> list[Controller]:
    """The controllers of policies; those that share a name are named after their folders."""
    controllers = [policy.controller for policy in policies]
    names = [controller.name for controller in controllers]
    for controller, path in zip(controllers, paths, strict=True):
        if names.count(controller.name) > 1:
            controller.name = path.resolve().name
    return controllers


def class_of(kind: str) -> type[Storable]:
    """Returns the class of a kind of controller, of this package or of another that is installed."""
    if found := _OWN.get(kind) or _GIVEN.get(kind):
        return found
    for point in entry_points(group=GROUP):
        offered: type[Storable] | None = point.load()(kind)
        if offered is not None:
            return offered
    raise CheckpointError(
        f"Expected a policy of a kind in {sorted(_OWN)} or of an installed package (entry point group {GROUP!r}), "
        f"got {kind!r}. SpecKV's own agents are there once installed: `pip install -e .` in the checkout."
    )


def _restore(kind: type[Storable], state: ControllerState, name: str) -> Controller:
    controller = kind.from_state(state)
    controller.name = name
    return controller


def _policy(card: Mapping[str, Any], controller: Controller, schema: ObservationSchema) -> Policy:
    observation, gamma = card["observation"], card["gamma"]
    typical = _neutral()
    for place, name in enumerate(SCHEMA.names):
        if name in schema.names:
            typical[place] = observation["typical"][name]
    policy = Policy.of(
        controller,
        learns=bool(card["learns"]),
        fallback=gamma["fallback"],
        gamma_max=gamma["max"],
        typical=typical,
        cost_ratio={str(c): float(ratio) for c, ratio in observation["cost_ratio"].items()},
        trained_on=dict(card["trained_on"]),
    )
    if observation["memory"] != MEMORY:
        raise CheckpointError(
            f"Expected memory constants {MEMORY}, got {observation['memory']}. Export it with this version of SpecKV."
        )
    stated = (card["granularity"], card["sampling_safe"], card["learns"], gamma["min"])
    if stated != (policy.granularity, True, policy.learns, 0):
        raise CheckpointError(f"The card states {stated}, which is not what its controller is. Export it again.")
    return policy


def _frozen(controller: Controller) -> Controller:
    if not (isinstance(controller, OnlineLearner) and controller.learns):
        return controller
    frozen = copy.deepcopy(controller)
    frozen.learns = False
    return frozen


def _neutral() -> FloatArray:
    return RequestMemory(cost_ratio=_NEUTRAL_RATIO, bits_per_weight=16.0, budget=256).render().copy()
