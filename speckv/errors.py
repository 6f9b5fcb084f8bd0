# SPDX-License-Identifier: Apache-2.0
"""The errors that SpecKV raises on purpose; each also inherits a fitting builtin, so `except ValueError` works.

Every message states what was expected, what came, and what to do.
"""

import difflib
from collections.abc import Iterator
from contextlib import contextmanager


class SpecKVError(Exception):
    """Base of every error raised on purpose."""


class ConfigError(SpecKVError, ValueError):
    """A setting is unknown, out of range or contradicts another."""


class DataError(SpecKVError, ValueError):
    """A prompts file or another user-supplied data file cannot be used."""


class TraceError(SpecKVError, ValueError):
    """A trace file is damaged, from another schema version, or lacks what is needed."""


class CostTableError(SpecKVError, ValueError):
    """A cost table is damaged or lacks what is needed."""


class SchemaError(SpecKVError, ValueError):
    """A policy and an environment disagree about the observation."""


class ProbabilityError(SpecKVError, ValueError):
    """A distribution is not one: NaN logits, or a drafted token of probability zero."""


class BudgetError(SpecKVError, ValueError):
    """A prompt or a token budget does not fit the models' context."""


class CheckpointError(SpecKVError, ValueError):
    """A run folder or checkpoint is missing, incomplete or from another run."""


class ModelError(SpecKVError, OSError):
    """A model cannot be loaded: missing, gated, damaged, or not a match for its partner."""


class CompressionError(SpecKVError, RuntimeError):
    """A compression is unknown or cannot run on this device."""


class DeviceError(SpecKVError, RuntimeError):
    """A device ran out of memory, or was lost, while models ran on it."""


_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
_LOST = ("CUDA error", "CUDA driver error", "HIP error")


def device_error(error: BaseException) -> DeviceError | None:
    """Explains an error of a device by its text, without importing PyTorch; None for any other error.

    >>> str(device_error(RuntimeError("CUDA error: unspecified launch failure"))).partition(" It")[0]
    'The device failed (CUDA error: unspecified launch failure).'
    >>> device_error(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
    True
    """
    text = " ".join(str(error).split())[:200]
    if isinstance(error, MemoryError) or any(word in text for word in _OUT_OF_MEMORY):
        return DeviceError(
            f"The device ran out of memory ({text or 'no details'}). Expected both models, their caches and one pass "
            "to fit: shorten prompts or the token budget, compress the target (model.compression=int8 or nf4), take a "
            "smaller dtype or pair, or free memory that other programs hold."
        )
    if any(word in text for word in _LOST):
        return DeviceError(
            f"The device failed ({text}). It does not work on in this process: start again, with "
            "CUDA_LAUNCH_BLOCKING=1 to see where, or with model.device=cpu; look at nvidia-smi if it is gone."
        )
    return None


@contextmanager
def device_errors_explained() -> Iterator[None]:
    """Turns errors that PyTorch raises where a device is out of memory or lost into a `DeviceError`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        explained = None if isinstance(error, SpecKVError) else device_error(error)
        if explained is None:
            raise
        raise explained from error


def nearest(name: str, known: list[str]) -> str:
    """Returns a hint naming the closest known word, or an empty string.

    >>> nearest("pop", ["ppo", "fixed"])
    " Did you mean 'ppo'?"
    """
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return f" Did you mean {close[0]!r}?" if close else ""
