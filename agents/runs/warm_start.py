# SPDX-License-Identifier: Apache-2.0
"""Live learning that begins with a stored controller: a policy or an online learner that recordings have trained."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from agents.bandits.base import Bandit
from agents.rl.export import export_policy
from agents.rl.normalisation import NormalisingExtractor
from agents.runs import checkpoint
from agents.runs.run_folder import BEST, LAST
from speckv.cost import CostTable
from speckv.cost.times import StepTimes
from speckv.errors import CheckpointError, nearest
from speckv.runtime.learned import LstmPolicy, MlpPolicy, NetworkPolicy
from speckv.runtime.policy import SHIPPED, load_controller, shipped_policy


def find_source(init_from: str, cost: str) -> Path:
    """Resolves a run folder, a policy folder, the name of a shipped policy, or "shipped": that of the cost table.

    Raises:
        CheckpointError: if it is none of them.
    """
    names = sorted(path.stem for path in SHIPPED.iterdir() if path.is_dir())
    name = cost if init_from == "shipped" else init_from
    if name in names:
        return shipped_policy(name)
    if not Path(init_from).is_dir():
        raise CheckpointError(
            f"Expected init_from to name a run folder or a shipped policy of {names}, got {init_from!r}."
            f"{nearest(init_from, names)}"
        )
    return Path(init_from)


def start_bandit(name: str, settings: Any, source: Path, cost: CostTable, compression: str, seed: int) -> Bandit:
    """Makes an online learner with the state of a stored one and this run's clock.

    Args:
        settings: The stored one must have the same.
        source: Run folder.
        seed: Of its draws.

    Raises:
        CheckpointError: if the folder holds no such learner, or one without the compression.
        CostTableError: if the clock lacks a compression of the stored one.
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
            f"Expected init_from to hold a bandit that has met {compression}, got one of {list(known.compressions)}. "
            "Train it on recordings of that compression, or begin without init_from."
        )
    moved = bandit.with_times(StepTimes.of(cost, known.compressions, gamma_max=known.verify_s.shape[1] - 1))
    moved.reseed(seed)
    return moved


def start_learner(model: BaseAlgorithm, source: Path, gamma_max: int) -> str:
    """Gives a fresh learner the parameters and the normalisation of a trained policy.

    A whole checkpoint gives actor and critic. A policy alone, such as the shipped ones, gives the actor, and the critic
    begins untrained. The optimiser begins anew in either case.

    Args:
        source: Run folder or policy folder.
        gamma_max: Most tokens of a draft.

    Returns:
        What was copied, for the user.

    Raises:
        CheckpointError: if the folder holds no policy of a learner, or one of another environment or architecture.
        SchemaError: if it reads another observation.
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
            checkpoint.load_policy(source / file, model)
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
    """Whether a learner's actor equals a stored policy to the last bit."""
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
