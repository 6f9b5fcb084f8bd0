# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that continue a run, and stored controllers that begin a live one.

A run continues from its checkpoint as if it had never stopped, so unlike Stable-Baselines3's own archive it holds the
environments' states and generators, the last observations, and the global generators.
"""

import io
import json
import pickle
import random
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn

from speckv.agents.bandits.base import Bandit
from speckv.agents.rl.export import export_policy
from speckv.agents.rl.learners import NormalisingExtractor
from speckv.agents.rl.state import get_arrays, get_counters, set_state
from speckv.agents.runs.environments import Resumable
from speckv.agents.runs.run_folder import BEST, LAST
from speckv.cost import CostTable
from speckv.cost.times import StepTimes
from speckv.errors import CheckpointError, nearest
from speckv.files import write_atomically
from speckv.runtime.learned import LstmPolicy, MlpPolicy, NetworkPolicy
from speckv.runtime.policy import load_controller
from speckv.runtime.shipped import LEARNER, SHIPPED, WORD, shipped_policy
from speckv.runtime.storage import SUFFIX

Uint32 = NDArray[np.uint32]

FORMAT = "speckv-checkpoint"
FORMAT_VERSION = 1


class _Content(TypedDict):
    format: str
    format_version: int
    policy: dict[str, Tensor]
    optimizer: dict[str, object]
    arrays: dict[str, Tensor]
    torch: Tensor
    state: str


@dataclass(slots=True, kw_only=True)
class LearnerProgress:
    """State of a run beside the learner and its environments.

    Attributes:
        next_evaluation: Environment step at or after which the next evaluation is due.
        best_score: On validation prompts; None before the first evaluation.
        rates: Compression -> lambda, in tokens per second.
    """

    next_evaluation: int = 0
    best_score: float | None = None
    best_step: int = 0
    rates: dict[str, float] = field(default_factory=dict)


def save(
    path: Path, model: BaseAlgorithm, env: Resumable, progress: LearnerProgress, *, with_replay: bool = True
) -> None:
    """Writes the whole state between two rollouts; a file without the replay buffer cannot continue a run."""
    arrays, generators = env.get_state()
    arrays |= get_arrays(model, with_replay=with_replay)
    name, keys, *rest = cast(tuple[str, Uint32, int, int, float], np.random.get_state(legacy=True))  # noqa: NPY002
    state = {
        **get_counters(model),
        "generators": generators,
        "python": random.getstate(),
        "numpy": [name, keys.tolist(), *rest],
        "progress": asdict(progress),
    }
    content: _Content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "policy": model.policy.state_dict(),
        "optimizer": model.policy.optimizer.state_dict(),
        "arrays": {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in arrays.items()},
        "torch": torch.get_rng_state(),
        "state": json.dumps(state),
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(path, buffer.getvalue())


def load(path: Path, model: BaseAlgorithm, env: Resumable) -> LearnerProgress:
    """Restores a saved state in a freshly built learner and its environments, or raises CheckpointError.

    The caller checks that settings, recordings and cost table are those of the saved run.
    """
    content = _read(path)
    try:
        model.policy.load_state_dict(content["policy"])
        model.policy.optimizer.load_state_dict(content["optimizer"])
        arrays = {name: tensor.numpy() for name, tensor in content["arrays"].items()}
        state = json.loads(content["state"])
        set_state(model, arrays, state)
        env.set_state(arrays, state["generators"])
        progress = LearnerProgress(**state["progress"])
        # Last, because building a learner and resetting environments draws from or reseeds these.
        name, keys, *rest = state["numpy"]
        np.random.set_state((name, np.array(keys, np.uint32), *rest))  # noqa: NPY002
        version, internal, gauss = state["python"]
        random.setstate((version, tuple(internal), gauss))
        torch.set_rng_state(content["torch"])
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        text = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{path} does not fit this run ({text}). Start a new run.") from error
    return progress


def load_policy(path: Path, model: BaseAlgorithm) -> None:
    """Restores the saved network alone, normalisation included, in a freshly built learner."""
    content = _read(path)
    try:
        model.policy.load_state_dict(content["policy"])
    except (KeyError, RuntimeError) as error:
        text = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{path} does not fit this learner ({text}). Give it the same agent settings.") from error


def _read(path: Path) -> _Content:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"Expected a checkpoint at {path}, found none. Name a run folder of a learner such as ppo."
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path} is no readable checkpoint: it is damaged. Start a new run.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path}: expected a SpecKV checkpoint. Name a run folder of a learner such as ppo.")
    if content.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: expected checkpoint format version {FORMAT_VERSION}, got {content.get('format_version')}. "
            "Continue it with the version of SpecKV that wrote it."
        )
    return cast(_Content, content)


def find_source(init_from: str, cost: str) -> Path:
    """Resolves a run folder, a policy folder, a shipped PPO policy's name, or "shipped": that of the cost table."""
    names = sorted(path.stem for path in SHIPPED.glob(f"*{LEARNER}{SUFFIX}"))
    name = f"{cost}{LEARNER}" if init_from == WORD else init_from
    if name in names:
        return shipped_policy(name)
    if not Path(init_from).is_dir():
        raise CheckpointError(
            f"Expected init_from to name a run folder or a shipped policy of {names}, got {init_from!r}."
            f"{nearest(init_from, names)}"
        )
    return Path(init_from)


def start_bandit(name: str, settings: Any, source: Path, cost: CostTable, compression: str, seed: int) -> Bandit:
    """Makes an online learner with the state of a stored one and this run's cost table.

    Raises:
        CheckpointError: if the folder holds no such learner, or one without the compression.
        CostTableError: if the cost table lacks a compression of the stored one.
    """
    bandit = load_controller(source)
    if not isinstance(bandit, Bandit) or bandit.kind != name:
        raise CheckpointError(f"Expected init_from to hold an agent {name!r}, got {bandit.name!r} in {source}.")
    if bandit.settings != settings:
        raise CheckpointError(
            f"Expected init_from to hold {name} with the settings of this run, {settings}, got {bandit.settings}. "
            "Give this run those."
        )
    known = bandit.times
    if compression not in known.compressions:
        raise CheckpointError(
            f"Expected init_from to hold a bandit trained on {compression}, got one of {list(known.compressions)}. "
            "Train it on recordings of that compression, or begin without init_from."
        )
    moved = bandit.with_times(StepTimes.of(cost, known.compressions, gamma_max=known.verify_s.shape[1] - 1))
    moved.reseed(seed)
    return moved


def start_learner(model: BaseAlgorithm, source: Path, gamma_max: int) -> str:
    """Copies a trained policy's parameters and normalisation into a fresh learner, and describes the copy.

    A checkpoint has actor and critic, a policy alone only the actor. The optimiser begins anew in either case.

    Raises:
        CheckpointError: if the folder holds no policy of a learner, or one of another environment or architecture.
        SchemaError: if its observation differs.
    """
    controller = load_controller(source)
    policy = getattr(controller, "policy", None)
    if not isinstance(policy, MlpPolicy | LstmPolicy):
        raise CheckpointError(
            f"Expected init_from to hold the policy of a learner such as ppo, got {controller.name!r} in {source}: "
            "only that agent itself can go on from it."
        )
    _require_same_build(model, policy, source, gamma_max)
    for file in (BEST, LAST):
        if (source / file).is_file():
            load_policy(source / file, model)
            if _same_actor(model, policy, gamma_max):
                return f"actor, critic and normalisation of {source / file}"
    if isinstance(policy, LstmPolicy):
        raise CheckpointError(f"Expected a checkpoint of the policy in {source}, found none. Name its run folder.")
    _copy_actor(model, policy)
    return f"actor and normalisation of {controller.name} in {source}; its critic is not stored and begins untrained"


def _require_same_build(model: BaseAlgorithm, policy: NetworkPolicy, source: Path, gamma_max: int) -> None:
    fresh = export_policy(model, gamma_max=gamma_max)
    if type(policy) is not type(fresh):
        raise CheckpointError(f"Expected init_from to hold a policy that remembers as this agent's does, got {source}.")
    if policy.environment != fresh.environment or policy.gammas != fresh.gammas:
        raise CheckpointError(
            f"Expected init_from to hold a policy of {fresh.environment} with gammas {list(fresh.gammas)}, got "
            f"one of {policy.environment} with {list(policy.gammas)} in {source}. Choose env=live or "
            "env=live_stopping and env.gamma_max as it was trained."
        )
    shapes, wanted = ([w.shape for w in p.weights] for p in (policy, fresh))
    if shapes != wanted:
        hidden = [len(bias) for bias in policy.biases[:-1]]
        raise CheckpointError(
            f"Expected init_from to hold layers of shapes {wanted}, got {shapes} in {source}. "
            f"Say agent.hidden={hidden}."
        )


def _same_actor(model: BaseAlgorithm, policy: NetworkPolicy, gamma_max: int) -> bool:
    ours = export_policy(model, gamma_max=gamma_max)
    pairs = zip(
        (ours.mean, ours.std, *ours.weights, *ours.biases),
        (policy.mean, policy.std, *policy.weights, *policy.biases),
        strict=True,
    )
    return all(np.array_equal(a, b) for a, b in pairs)


def _copy_actor(model: BaseAlgorithm, policy: MlpPolicy) -> None:
    network, extractor = model.policy, model.policy.features_extractor
    assert isinstance(network, ActorCriticPolicy)
    assert isinstance(extractor, NormalisingExtractor)
    modules = (*network.mlp_extractor.policy_net, network.action_net)
    layers = [module for module in modules if isinstance(module, nn.Linear)]
    with torch.no_grad():
        extractor.mean.copy_(torch.from_numpy(policy.mean))
        extractor.std.copy_(torch.from_numpy(policy.std))
        for layer, weight, bias in zip(layers, policy.weights, policy.biases, strict=True):
            layer.weight.copy_(torch.from_numpy(weight))
            layer.bias.copy_(torch.from_numpy(bias))
