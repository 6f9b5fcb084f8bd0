# SPDX-License-Identifier: Apache-2.0
"""Checks that every weight of a loaded model came from its files."""

from collections.abc import Mapping, Sequence
from typing import Any

from speckv.errors import ModelError

_NAMED = 3


def refuse_incomplete(source: str, loading_info: Mapping[str, Any], *, advice: str = "") -> None:
    """Passes if transformers initialised no weight at random.

    Tied weights, such as a head that shares the embedding, are not among the missing keys.

    Args:
        source: Hub id, folder or file, for the message.
        loading_info: The second value of `from_pretrained(..., output_loading_info=True)`.
        advice: What to do; by default, to fetch the model again.

    Raises:
        ModelError: naming the first keys that are missing, or stored in another shape.
    """
    missing = sorted(loading_info.get("missing_keys") or ())
    mismatched = sorted(str(key[0]) for key in loading_info.get("mismatched_keys") or ())
    problems = [f"lacks {len(missing)} ({_first(missing)})"] if missing else []
    if mismatched:
        problems.append(f"holds {len(mismatched)} in another shape ({_first(mismatched)})")
    if problems:
        raise ModelError(
            f"Expected {source} to hold every weight that its configuration describes, but it {' and '.join(problems)}."
            f" {advice or 'Fetch the whole model again, with all of its shards.'}"
        )


def _first(keys: Sequence[str]) -> str:
    return ", ".join(keys[:_NAMED]) + (", ..." if len(keys) > _NAMED else "")
