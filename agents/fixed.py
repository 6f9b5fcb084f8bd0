# SPDX-License-Identifier: Apache-2.0
"""One constant gamma: what every engine asks its user for."""

from speckv.errors import ConfigError
from speckv.evaluation.replays import fixed_name
from speckv.runtime.constant import ConstantGamma
from speckv.types import GAMMA_MAX


class FixedGamma(ConstantGamma):
    """Always drafts `gamma` tokens, as many as recordings know of; 0 is plain decoding.

    >>> FixedGamma(4).name
    'agent fixed-4'
    """

    def __init__(self, gamma: int) -> None:
        if not 0 <= gamma <= GAMMA_MAX:
            raise ConfigError(f"Expected gamma from 0 to {GAMMA_MAX} tokens, got {gamma!r}.")
        # A table lists every constant under its plain name already.
        super().__init__(gamma, name=f"agent {fixed_name(gamma)}")
