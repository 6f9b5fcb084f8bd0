# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C and SIGTERM as a request: finish the update, save, then go."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class InterruptedTraining(Exception):  # noqa: N818
    """Training stopped on a signal, after its checkpoint was saved.

    Attributes:
        signum: The signal.
        advice: How to go on.
    """

    def __init__(self, signum: int, advice: str = "the checkpoint is saved, continue with resume=RUN_FOLDER") -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum
        self.advice = advice

    @property
    def exit_code(self) -> int:
        """What a shell reports for a program that the signal ended."""
        return 128 + self.signum


class StopRequest:
    """Remembers the first signal.

    Attributes:
        signum: It, or None while nobody asked.
    """

    def __init__(self) -> None:
        self.signum: int | None = None

    def handle(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Takes note; at the second signal whoever sends them wants out at once."""
        if self.signum is not None:
            raise KeyboardInterrupt
        self.signum = signum


@contextmanager
def catch_signals() -> Iterator[StopRequest]:
    """Turns SIGINT and SIGTERM into a request while the block runs; only the main thread may, others get none."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
