# SPDX-License-Identifier: Apache-2.0
"""A policy that travels: `<name>.speckv/` with a card in JSON and arrays in safetensors, nothing else.

The card says everything that someone else's decode loop must know, and holds test vectors that are played whenever the
policy is loaded ([docs/export.md](../../docs/export.md)).
"""

import copy
import hashlib
import json
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from speckv import __version__
from speckv.errors import CheckpointError, ConfigError, SpecKVError
from speckv.files import canonical_json, write_atomically
from speckv.observation import (
    DECAY,
    PRIOR_ACCEPTANCE,
    PRIOR_TOKENS,
    SCHEMA,
    STOPPING_SCHEMA,
    ObservationSchema,
    RequestMemory,
)
from speckv.runtime.card import CARD, read_card, read_described
from speckv.runtime.kinds import Packed, pack_controller, unpack
from speckv.runtime.session import HIDDEN, Session
from speckv.runtime.stored import EXPORTED
from speckv.runtime.tensors import dump_tensors, read_tensors
from speckv.runtime.turns import shared
from speckv.runtime.vectors import make_script, play
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

FORMAT = EXPORTED
FORMAT_VERSION = 1
WEIGHTS = "policy.safetensors"
SUFFIX = ".speckv"
MEMORY = {"decay": DECAY, "prior_acceptance": PRIOR_ACCEPTANCE, "prior_tokens": PRIOR_TOKENS}
"""Constants of what is remembered of a request."""
_ENDLESS = 1 << 30
"""Tokens of no text."""
_NEUTRAL_RATIO = 0.3
"""Where nobody knows the cost ratio."""
_KEYS = {
    "format",
    "format_version",
    "speckv_version",
    "name",
    "kind",
    "settings",
    "granularity",
    "gamma",
    "learns",
    "sampling_safe",
    "observation",
    "trained_on",
    "weights_sha256",
    "test_vectors",
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Policy:
    """A controller with everything that it needs away from home.

    Attributes:
        name: Shown in tables.
        controller: Decides; sessions get copies of it, or share it where it goes on learning.
        packed: Its parts; None for one that lives in this program alone and cannot be saved.
        fallback: Compression -> gamma where the controller cannot be asked, in tokens.
        gamma_max: Most tokens of a draft.
        learns: Whether what one request teaches is used in the next.
        typical: Shape [features]; mean observation on the recordings, seen in place of what a library does not tell.
        cost_ratio: Compression -> one draft pass over one target pass, where it was trained.
        trained_on: Pair, recording and clock: plain data.
        warnings: Reason -> how often the fallback was used, in all sessions.
    """

    name: str
    controller: Controller
    packed: Packed | None = None
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
        """A policy of a live controller.

        Args:
            controller: Any.
            learns: Whether it goes on learning; by default as it is. False freezes a copy of it.
            **known: Other attributes.
        """
        learner = isinstance(controller, OnlineLearner) and controller.learns
        controller = controller if learns is not False else _frozen(controller)
        known.setdefault("typical", _neutral())
        known.setdefault("packed", pack_controller(controller))
        return Policy(
            name=known.pop("name", controller.name),
            controller=controller,
            learns=learner if learns is None else learns and learner,
            **known,
        )

    @property
    def granularity(self) -> str:
        """What it decides: "token" if also inside steps, else "step"."""
        return "token" if isinstance(self.controller, StoppingController) else "step"

    @property
    def sampling_safe(self) -> bool:
        """Whether it is lossless under rejection sampling: the token that ends a draft stays in it, so always."""
        return True

    @property
    def interleaves(self) -> bool:
        """Whether steps of several sessions may interleave; of learners, those that can put a request aside."""
        return not self.learns or isinstance(self.controller, InterleavedLearner)

    @property
    def compressions(self) -> tuple[str, ...]:
        """Those it was made for; the first is a session's default."""
        return tuple(self.cost_ratio) or ("fp16",)

    def never_drafts(self, compression: str | None = None) -> bool:
        """Whether it is plain decoding at a compression, whatever it sees; that of a session by default."""
        controller = self.controller
        return isinstance(controller, Abstainer) and controller.never_drafts(compression or self.compressions[0])

    @property
    def fallback_gamma(self) -> int:
        """Tokens drafted at the default compression where the controller cannot be asked."""
        return self.fallback.get(self.compressions[0], 0)

    def session(
        self,
        *,
        max_new_tokens: int | None,
        compression: str | None = None,
        cost_ratio: float | None = None,
        vocab_size: int | None = None,
        hidden: Collection[str] = (),
    ) -> Session:
        """Opens a session, for one request.

        Sessions of a policy that learns share what it learns. Their steps may interleave if it `interleaves`; otherwise
        its requests come one after the other.

        Args:
            max_new_tokens: Token budget, the prefill's token included; None where nobody tells, which hides the budget
                and bounds no draft.
            compression: Of the target; the policy's first by default.
            cost_ratio: One draft pass over one target pass; what it was trained with by default.
            vocab_size: Of the target; where it is another tokenizer's than in training, every decision is the fallback.
            hidden: What the library does not tell, seen as typical: signals of "target" and "draft"; "budget", where
                `max_new_tokens` is a mere bound, such as that of the context, at which few texts end.

        Raises:
            ConfigError: for a compression or a hidden part that is not known.
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
            fallback=self.fallback.get(compression, self.fallback_gamma),
            warnings=self.warnings,
            hidden=hidden,
            typical=self.typical,
            refuse=refuse,
        )

    # -- on disk --------------------------------------------------------------------------------------------------

    def save(self, folder: Path | str) -> None:
        """Writes the policy's two files, the card last, so that it never describes weights to come.

        Raises:
            CheckpointError: if the controller is of a kind that cannot be stored.
        """
        if self.packed is None:
            raise CheckpointError(f"Expected a controller of a kind that can be stored, got {self.controller!r}.")
        folder, data = Path(folder), dump_tensors(self.packed.arrays)
        script = make_script(self.compressions, depth=max(self.gamma_max, 1))
        card = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "speckv_version": __version__,
            "name": self.name,
            "kind": self.packed.kind,
            "settings": dict(self.packed.settings),
            "granularity": self.granularity,
            "gamma": {"min": 0, "max": self.gamma_max, "fallback": dict(self.fallback)},
            "learns": self.learns,
            "sampling_safe": self.sampling_safe,
            "observation": {
                "schema": json.loads(self._schema.to_json()),
                "memory": MEMORY,
                "typical": dict(zip(SCHEMA.names, map(float, self.typical), strict=True)),
                "cost_ratio": dict(self.cost_ratio),
            },
            "trained_on": dict(self.trained_on),
            "weights_sha256": hashlib.sha256(data).hexdigest(),
            "test_vectors": {"requests": script, "decisions": play(script, self._fresh().session)},
        }
        write_atomically(folder / WEIGHTS, data)
        write_atomically(folder / CARD, _rendered(card))

    @property
    def _schema(self) -> ObservationSchema:
        return STOPPING_SCHEMA if self.granularity == "token" else SCHEMA

    def _fresh(self) -> "Policy":
        """The same as it was stored, with warnings of its own, to be tried out."""
        controller = unpack(self.packed, self.name) if self.packed else copy.deepcopy(self.controller)
        controller = controller if self.learns else _frozen(controller)
        return replace(self, controller=controller, warnings=Counter())

    @staticmethod
    def load(folder: Path | str) -> "Policy":
        """Reads and tries a policy.

        Raises:
            CheckpointError: if it is missing, truncated, tampered with, of another version or absurd, or decides
                otherwise here than where it was saved.
            SchemaError: naming the first difference, if it reads another observation.
        """
        folder = Path(folder)
        card = read_card(folder / CARD, FORMAT, FORMAT_VERSION, _KEYS)
        data = read_described(folder / WEIGHTS, card["weights_sha256"])
        try:
            policy = _policy(
                card,
                Packed(kind=str(card["kind"]), settings=card["settings"], arrays=read_tensors(data, folder / WEIGHTS)),
            )
            played = play(card["test_vectors"]["requests"], policy._fresh().session)
        except SpecKVError as error:
            raise type(error)(f"{folder}: {error}") from error
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise CheckpointError(
                f"{folder / CARD}: a malformed field ({error!r}). Export the policy again."
            ) from error
        if played != card["test_vectors"]["decisions"]:
            raise CheckpointError(
                f"{folder}: the policy decides otherwise here than where it was saved (test vectors differ). "
                "Export it again with this version of SpecKV."
            )
        return policy


def _rendered(card: Mapping[str, Any]) -> str:
    """Canonical JSON, but for the long lists of numbers, which stand on one line a request."""
    vectors = card["test_vectors"]
    lines = {name: [json.dumps(row, sort_keys=True, allow_nan=False) for row in rows] for name, rows in vectors.items()}
    text = ",\n".join(f'    "{name}": [\n      ' + ",\n      ".join(rows) + "\n    ]" for name, rows in lines.items())
    rest = canonical_json({**card, "test_vectors": None})
    return rest.replace('"test_vectors": null', f'"test_vectors": {{\n{text}\n  }}')


def _policy(card: Mapping[str, Any], packed: Packed) -> Policy:
    observation, gamma = card["observation"], card["gamma"]
    controller = unpack(packed, str(card["name"]))
    typical = np.array([observation["typical"][name] for name in SCHEMA.names], np.float32)
    policy = Policy.of(
        controller,
        learns=bool(card["learns"]),
        packed=packed,
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
    policy._schema.require_same(ObservationSchema.from_json(json.dumps(observation["schema"])))
    said = (card["granularity"], card["sampling_safe"], card["learns"], gamma["min"])
    if said != (policy.granularity, policy.sampling_safe, policy.learns, 0):
        raise CheckpointError(f"What its card says ({said}) is not what its parts are. Export it again.")
    return policy


def _frozen(controller: Controller) -> Controller:
    """A copy that does not go on learning, or the controller itself if it never does."""
    if not (isinstance(controller, OnlineLearner) and controller.learns):
        return controller
    frozen = copy.deepcopy(controller)
    frozen.learns = False
    return frozen


def _neutral() -> FloatArray:
    return RequestMemory(cost_ratio=_NEUTRAL_RATIO, bits_per_weight=16.0, budget=256).render().copy()


load = Policy.load
