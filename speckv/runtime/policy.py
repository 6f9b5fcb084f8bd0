# SPDX-License-Identifier: Apache-2.0
"""A trained policy as two small files, and the NumPy code that decides with it.

`policy.json` is the card: what the policy reads (the observation schema), what its outputs mean (one gamma each) and
where it came from. `policy.npz` holds the weights and the normalisation of the inputs. Together they are the whole
policy: no PyTorch, no Stable-Baselines3, no pickle.
"""

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from speckv.errors import CheckpointError, SchemaError
from speckv.observation import SCHEMA, STOPPING_SCHEMA, ObservationSchema, observe_draft, summarise_draft
from speckv.runtime.card import CARD, read_fields, read_network_card, save_policy
from speckv.runtime.network import Network, fold
from speckv.types import NUM_SIGNALS, BoolArray, FloatArray, IntArray, StepOutcome

FORMAT = "speckv-policy"
FORMAT_VERSION = 1
SHIPPED = Path(__file__).resolve().parents[1] / "assets" / "policies"
"""Folders of the policies that come with SpecKV, by cost table."""
STEP_ENVIRONMENT = "SpecKV/GammaSelection-v0"
STOPPING_ENVIRONMENT = "SpecKV/DraftStopping-v0"
SCHEMAS = {STEP_ENVIRONMENT: SCHEMA, STOPPING_ENVIRONMENT: STOPPING_SCHEMA}
"""What a policy of each environment reads."""
NOT_FINITE = "Expected a finite observation, got NaN. Check the signals it was computed from."


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MlpPolicy:
    """A tanh network from a raw observation to one score per gamma.

    Attributes:
        name: Shown in tables.
        schema: What it reads.
        gammas: Speculation length, in tokens, that each output stands for.
        mean: Shape [features]; subtracted from a raw observation.
        std: Shape [features], above zero; divides it then.
        weights: One matrix a layer, of shape [outputs, inputs].
        biases: One vector a layer, of shape [outputs].
        environment: Id of the environment it was trained in.
        provenance: Where it came from: traces, cost table, seed, versions.
    """

    name: str
    schema: ObservationSchema
    gammas: tuple[int, ...]
    mean: FloatArray
    std: FloatArray
    weights: tuple[FloatArray, ...]
    biases: tuple[FloatArray, ...]
    environment: str = STEP_ENVIRONMENT
    provenance: Mapping[str, str | int | float]

    def __post_init__(self) -> None:
        """Checks that the arrays fit each other, the schema and the gammas."""
        sizes = [self.schema.size, *(len(b) for b in self.biases)]
        wanted = [(rows, columns) for columns, rows in itertools.pairwise(sizes)]
        shapes = [w.shape for w in self.weights]
        if shapes != wanted or sizes[-1] != len(self.gammas) or not self.weights:
            raise CheckpointError(
                f"Expected layers of shapes {wanted} that end in {len(self.gammas)} gammas, got weights of shapes "
                f"{shapes}. Export the policy again."
            )
        if self.mean.shape != (self.schema.size,) or self.std.shape != self.mean.shape or not np.all(self.std > 0):
            raise CheckpointError(
                f"Expected {self.schema.size} normalisation means and positive deviations, got shapes "
                f"{self.mean.shape} and {self.std.shape}. Export the policy again."
            )
        if not all(np.isfinite(a).all() for a in (self.mean, self.std, *self.weights, *self.biases)):
            raise CheckpointError("Expected finite weights, got NaN or infinity: the training diverged. Train again.")

    def folded(self) -> tuple[tuple[FloatArray, ...], tuple[FloatArray, ...]]:
        """Weights and biases that act on raw observations."""
        return fold(self.mean, self.std, self.weights, self.biases)

    def save(self, folder: Path | str) -> None:
        """Writes the two files, each atomically; the card last, so that it never describes weights to come."""
        save_policy(
            Path(folder),
            self,
            _SINGLE,
            kind=FORMAT,
            version=FORMAT_VERSION,
            environment=self.environment,
            schema=self.schema.to_json(),
        )

    @staticmethod
    def load(folder: Path | str, *, schema: ObservationSchema | None = None) -> "MlpPolicy":
        """Reads a policy.

        Args:
            folder: Holds `policy.json` and `policy.npz`.
            schema: The observation that this program computes; by default the one of the policy's environment.

        Raises:
            CheckpointError: if a file is missing, damaged or of another format version.
            SchemaError: naming the first difference, if the policy reads another observation.
        """
        folder = Path(folder)
        card = read_network_card(folder / CARD, FORMAT, FORMAT_VERSION)
        trained_on = ObservationSchema.from_json(json.dumps(card["observation_schema"]))
        environment = str(card["environment"])
        if schema is None and environment not in SCHEMAS:
            raise CheckpointError(
                f"{folder / CARD}: expected a policy of an environment in {sorted(SCHEMAS)}, got {environment!r}. "
                "Export it with this version of SpecKV."
            )
        schema = schema or SCHEMAS[environment]
        schema.require_same(trained_on)
        return MlpPolicy(schema=trained_on, environment=environment, **read_fields(folder, card, _SINGLE))


_SINGLE = ("mean", "std")


class PolicyController:
    """Decides with an exported policy: a few microseconds a step, no allocation. Not for use from two threads at once.

    Ties go to the smaller gamma index, as in every comparison of this project.
    """

    charges_decision = True

    def __init__(self, policy: MlpPolicy, *, name: str | None = None) -> None:
        self.name = name or policy.name
        self.policy = policy
        self._gammas = list(policy.gammas)
        self._lookup = np.array(policy.gammas, np.int64)
        self._network = Network(*policy.folded())

    @staticmethod
    def load(folder: Path | str, *, name: str | None = None) -> "PolicyController":
        """Reads a policy from its folder; raises what `MlpPolicy.load` raises."""
        return PolicyController.of(MlpPolicy.load(folder), name=name)

    @staticmethod
    def of(policy: MlpPolicy, *, name: str | None = None) -> "PolicyController":
        """The controller for a policy's environment."""
        stops = policy.environment == STOPPING_ENVIRONMENT
        return StoppingPolicyController(policy, name=name) if stops else PolicyController(policy, name=name)

    def reset(self) -> None:
        """Nothing to forget: the observation carries the history."""

    def learn(self, outcome: StepOutcome) -> None:
        """Ignored: the policy is fixed."""

    def act(self, observation: FloatArray) -> int:
        """Returns gamma in tokens for one raw observation of shape [features].

        Raises:
            SchemaError: if the observation has another size or holds NaN.
        """
        if observation.shape != (self._network.num_features,):
            raise SchemaError(
                f"Expected {self._network.num_features} observation fields, got shape {observation.shape}."
            )
        values = self._network.one(observation)
        best = int(values.argmax())
        # argmax returns the first NaN, and NaN alone differs from itself.
        if values[best] != values[best]:
            raise SchemaError(NOT_FINITE)
        return self._gammas[best]

    def scores(self, observations: FloatArray) -> FloatArray:
        """Scores of shape [rows, gammas] for raw observations of shape [rows, features]."""
        return self._network.batch(observations)

    def act_batch(self, observations: FloatArray) -> IntArray:
        """Returns gamma for each row; equal to `act` on that row unless two scores agree to rounding."""
        if observations.ndim != 2 or observations.shape[1] != self._network.num_features:
            raise SchemaError(
                f"Expected [rows, {self._network.num_features}] observations, got shape {observations.shape}."
            )
        scores = self.scores(observations)
        if np.isnan(scores).any():
            raise SchemaError(NOT_FINITE)
        chosen: IntArray = self._lookup[scores.argmax(axis=1)]
        return chosen


class StoppingPolicyController(PolicyController):
    """Decides token by token: the policy's first output verifies, its second drafts on, up to its greatest gamma."""

    def __init__(self, policy: MlpPolicy, *, name: str | None = None) -> None:
        super().__init__(policy, name=name)
        self._seen = np.zeros(policy.schema.size, np.float32)
        self._seen[SCHEMA.size :] = summarise_draft(np.zeros((1, 0, NUM_SIGNALS)))[0, 0]

    def act(self, observation: FloatArray) -> int:
        """Returns the most tokens to draft, or 0, for one observation of shape [features], before a step."""
        if observation.shape != (SCHEMA.size,):
            raise SchemaError(f"Expected {SCHEMA.size} observation fields, got shape {observation.shape}.")
        self._seen[: SCHEMA.size] = observation
        return super().act(self._seen)

    def act_batch(self, observations: FloatArray) -> IntArray:
        """Returns the same for each row."""
        nothing = np.broadcast_to(self._seen[SCHEMA.size :], (len(observations), self._seen.size - SCHEMA.size))
        return super().act_batch(observe_draft(observations, np.asarray(nothing, np.float32)))

    def go_on(self, observation: FloatArray) -> bool:
        """Returns whether to draft another token."""
        return super().act(observation) > 0

    def go_on_batch(self, observations: FloatArray) -> BoolArray:
        """Returns the same for each row."""
        goes_on: BoolArray = super().act_batch(observations) > 0
        return goes_on
