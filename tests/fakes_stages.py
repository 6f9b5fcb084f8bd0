# SPDX-License-Identifier: Apache-2.0
"""Stages that fail in every way a device can make them fail."""

import os
import time

from benchmarks.gpu.settings import Settings
from benchmarks.gpu.work import Work


def fine(settings: Settings, work: Work) -> None:
    work.piece("device", lambda: settings.device)


def raises(*_: object) -> None:
    raise ValueError("no kernel")


def half(_: Settings, work: Work) -> None:
    work.piece("good", lambda: 1)
    work.piece("bad", lambda: 1 // 0)
    work.piece("after", lambda: 2)


def hangs(_: Settings, work: Work) -> None:
    work.piece("first", lambda: "kept")
    work.piece("second", lambda: time.sleep(600))


def dies(*_: object) -> None:
    os._exit(7)
