# SPDX-License-Identifier: Apache-2.0
"""One file that continues a run as if it had never stopped.

Stable-Baselines3's own archive leaves out what makes the difference: the environments' states and generators, the
last observations, and the global generators that its loading even reseeds. All of it is here, as tensors and JSON:
nothing is unpickled but what PyTorch's safe loader allows.
"""

import io
import json
import pickle
import random
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypedDict, cast

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor

from agents.rl.state import get_arrays, get_counters, set_state
from agents.runs.environments import Resumable
from speckv.errors import CheckpointError
from speckv.files import write_atomically

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
        best_score: Of the best checkpoint, on validation prompts; None before the first evaluation.
        best_step: Environment step of the best checkpoint.
        rates: Compression -> lambda, in tokens per second.
    """

    next_evaluation: int = 0
    best_score: float | None = None
    best_step: int = 0
    rates: dict[str, float] = field(default_factory=dict)


def save(
    path: Path, model: BaseAlgorithm, env: Resumable, progress: LearnerProgress, *, with_replay: bool = True
) -> None:
    """Writes the whole state between two rollouts, or leaves the file as it was.

    Args:
        with_replay: Whether to save the memory of a learner that replays; without it the file continues no run.
    """
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
    """Puts a saved state into a freshly built learner and its freshly built environments.

    The learner's settings, the recordings and the clock must be those it was saved with: the caller checks that.

    Raises:
        CheckpointError: if there is no checkpoint, or it is damaged or does not fit.
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
    """Puts the saved network alone, normalisation included, into a freshly built learner.

    Raises:
        CheckpointError: if there is no checkpoint, or it is damaged or its network is another.
    """
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
