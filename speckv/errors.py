# SPDX-License-Identifier: Apache-2.0
"""The one family of errors that SpecKV raises on purpose.

Every message says what was expected, what came, and what to do about it. Each class also inherits the builtin a
caller would have expected, so `except ValueError` keeps working.
"""

import difflib


class SpecKVError(Exception):
    """Base of every error raised on purpose."""


class ConfigError(SpecKVError, ValueError):
    """A setting is unknown, out of range or contradicts another."""


class DataError(SpecKVError, ValueError):
    """A prompts file or another user-supplied data file cannot be used."""


class TraceError(SpecKVError, ValueError):
    """A trace file is damaged, from another schema version, or lacks what was asked of it."""


class CostTableError(SpecKVError, ValueError):
    """A cost table is damaged or does not cover what was asked of it."""


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


def nearest(name: str, known: list[str]) -> str:
    """Returns a hint naming the closest known word, or an empty string.

    >>> nearest("pop", ["ppo", "fixed"])
    " Did you mean 'ppo'?"
    >>> nearest("zzzz", ["ppo", "fixed"])
    ''
    """
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return f" Did you mean {close[0]!r}?" if close else ""
