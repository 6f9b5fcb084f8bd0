# SPDX-License-Identifier: Apache-2.0
"""`speckv merge out=all.parquet inputs=[part-0.parquet,part-1.parquet]`."""

import logging
from pathlib import Path

from omegaconf import DictConfig

from speckv.errors import TraceError
from speckv.traces import TraceSet, merge

logger = logging.getLogger(__name__)


def run(config: DictConfig) -> None:
    """Joins trace files; the inputs stay."""
    out = Path(config.out)
    if out.exists():
        raise TraceError(
            f"Expected {out} not to exist, so that nothing is overwritten. Move it or choose another name."
        )
    traces = merge([TraceSet.load(path) for path in config.inputs])
    traces.save(out)
    logger.info("%s: %d sequences, %.2f MB", out, len(traces.sequences), out.stat().st_size / 1e6)
