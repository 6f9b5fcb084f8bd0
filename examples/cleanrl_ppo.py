# SPDX-License-Identifier: Apache-2.0
"""PPO in one file, on the native vector environment: chooses gamma before each decode step.

    python examples/cleanrl_ppo.py

Trains a million steps, well under a minute on two CPU cores, and compares the policy with the best fixed gamma on test
prompts.
"""

import argparse
import time

import gymnasium as gym
import numpy as np
import torch
from torch import nn
from torch.distributions import Categorical

import speckv.envs  # noqa: F401 - registers the environments
from speckv.cost import CostTable
from speckv.evaluation.compare import compare
from speckv.traces import TraceSet, find_traces

LEARNING_RATE, CLIP, ENTROPY, EPOCHS, MINIBATCH = 1e-3, 0.2, 0.03, 4, 2048
ROLLOUT = 32
"""Steps of each environment between updates. The discount is 0: the reward of a step is its throughput."""


class Agent(nn.Module):
    """Actor and critic on normalised observations; also a SpecKV controller (`act`, `act_batch`)."""

    name, charges_decision = "cleanrl-ppo", True
    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, observations: torch.Tensor, num_actions: int) -> None:
        super().__init__()
        self.register_buffer("mean", observations.mean(0))
        self.register_buffer("std", observations.std(0) + 1e-3)
        size = observations.shape[1]
        self.actor = nn.Sequential(
            nn.Linear(size, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, num_actions)
        )
        self.critic = nn.Sequential(nn.Linear(size, 64), nn.Tanh(), nn.Linear(64, 1))

    def forward(self, observations: torch.Tensor) -> tuple[Categorical, torch.Tensor]:
        """Distribution over gammas, and value."""
        x = (observations - self.mean) / self.std
        return Categorical(logits=self.actor(x)), self.critic(x)[:, 0]

    def act_batch(self, observations: np.ndarray) -> np.ndarray:
        """Most probable gamma for each row."""
        with torch.no_grad():
            gammas: np.ndarray = self(torch.from_numpy(observations))[0].probs.argmax(1).numpy()
            return gammas

    def act(self, observation: np.ndarray) -> int:
        """Most probable gamma."""
        return int(self.act_batch(observation[None])[0])

    def reset(self) -> None:
        """Has no memory of a request."""

    def learn(self, outcome: object) -> None:
        """Learns in the environment alone."""


def main() -> None:
    """Trains and evaluates."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--num-envs", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    torch.set_num_threads(1)

    envs = gym.make_vec("SpecKV/GammaSelection-v0", num_envs=options.num_envs)
    space = envs.single_action_space
    assert isinstance(space, gym.spaces.Discrete)
    envs.action_space.seed(options.seed)
    observation, _ = envs.reset(seed=options.seed)
    seen = []
    for _ in range(20):  # a random policy, to normalise observations
        observation, *_ = envs.step(envs.action_space.sample())
        seen.append(torch.from_numpy(observation))
    agent = Agent(torch.cat(seen), int(space.n))
    optimizer = torch.optim.Adam(agent.parameters(), lr=LEARNING_RATE)
    updates = max(options.steps // (options.num_envs * ROLLOUT), 1)
    began = time.perf_counter()
    for update in range(updates):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - update / updates)
        batch, tokens, seconds = [], 0.0, 0.0
        for _ in range(ROLLOUT):
            state = torch.from_numpy(observation)
            with torch.no_grad():
                policy, value = agent(state)
                action = policy.sample()
            observation, reward, _, _, infos = envs.step(action.numpy())
            tokens, seconds = tokens + infos["num_emitted"].sum(), seconds + infos["seconds"].sum()
            reward = torch.from_numpy(reward).float()
            batch.append((state, action, policy.log_prob(action), reward - value, reward))
        states, actions, log_probs, advantages, returns = (torch.cat(part) for part in zip(*batch, strict=True))
        for _ in range(EPOCHS):
            order = torch.randperm(len(states))
            for first in range(0, len(order), MINIBATCH):
                rows = order[first : first + MINIBATCH]
                policy, value = agent(states[rows])
                ratio = (policy.log_prob(actions[rows]) - log_probs[rows]).exp()
                advantage = advantages[rows]
                advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
                gain = torch.min(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage).mean()
                loss = 0.5 * (returns[rows] - value).pow(2).mean() - gain - ENTROPY * policy.entropy().mean()
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
                optimizer.step()
        if update % 20 == 0 or update == updates - 1:
            step = (update + 1) * ROLLOUT * options.num_envs
            print(
                f"step {step:>9,}  {step / (time.perf_counter() - began):>7,.0f} steps/s  {tokens / seconds:.3f} tok/s"
            )

    traces = TraceSet.load(find_traces("qwen2.5-coder-greedy"))
    comparison = compare(
        train=traces.select(split="train"),
        test=traces.select(split="test"),
        cost=CostTable.load("cpu-2core"),
        controllers=[agent],
        num_resamples=1000,
    )
    print(f"x best fixed gamma on {comparison.setting.test_prompts} test prompts, 95 % interval:")
    for result in comparison.groups:
        if result.group.task == "all":
            row = result.row(agent.name).geomean_vs_best_fixed
            print(f"  {result.group.compression:5} {row.estimate:.3f} [{row.low:.3f}, {row.high:.3f}]")


if __name__ == "__main__":
    main()
