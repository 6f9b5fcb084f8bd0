# SPDX-License-Identifier: Apache-2.0
"""Stages of `benchmarks.gpu` that fail."""

import os
import time

from benchmarks.gpu.stage import Piece, Settings


def fine(settings: Settings) -> dict[str, Piece]:
    return {"device": lambda _: settings.device}


def raises(_: Settings) -> dict[str, Piece]:
    raise ValueError("no kernel")


def hangs(_: Settings) -> dict[str, Piece]:
    return {"first": lambda _: "kept", "second": lambda _: time.sleep(600)}


def dies(_: Settings) -> dict[str, Piece]:
    os._exit(7)
