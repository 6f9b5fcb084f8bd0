# SPDX-License-Identifier: Apache-2.0
"""What every test stands on: no network, one torch thread, reproducible hypothesis, and weights or a skip."""

import base64
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import hypothesis
import pytest

try:
    from matplotlib.figure import Figure
except ModuleNotFoundError:
    Figure = None  # type: ignore[assignment, misc]
try:
    import torch
except ModuleNotFoundError:  # a decoding library's own environment need not have it
    torch = None  # type: ignore[assignment]

WEIGHT_FILES = (
    "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
    "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
    "smollm2-135m-instruct-q4_1.gguf",
)

PIXEL = base64.b64decode(
    b"iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAAC0lEQVR42mNgAAIAAAUAAen63NgAAAAASUVORK5CYII="
)
"""A PNG of one transparent pixel."""

if torch is not None:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

hypothesis.settings.register_profile("dev", deadline=None, max_examples=50)
hypothesis.settings.register_profile("ci", deadline=None, max_examples=50, derandomize=True, database=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "dev")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """The whole suite runs on all cores, where pytest-xdist is installed; named tests run in this process."""
    named = config.args_source is not pytest.Config.ArgsSource.TESTPATHS
    if not named and config.getoption("numprocesses", 0) is None and not hasattr(config, "workerinput"):
        config.option.numprocesses, config.option.dist = "auto", "worksteal"


_save_picture = None if Figure is None else Figure.savefig


def _save_pixel(figure: Any, file: Any, **_: Any) -> None:  # noqa: ARG001
    if isinstance(file, str | Path):
        Path(file).write_bytes(PIXEL)
    else:
        file.write(PIXEL)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Pictures, which take longer than most runs, are drawn in tests marked `figures` alone."""
    if Figure is not None:
        drawn = item.get_closest_marker("figures") is not None
        Figure.savefig = _save_picture if drawn else _save_pixel  # type: ignore[method-assign, assignment]


def _weights_folder() -> Path:
    return Path(os.environ.get("SPECKV_WEIGHTS") or Path.home() / ".cache" / "speckv" / "weights")


def _missing_weights() -> str:
    """Returns why the `model` tests cannot run, or an empty string."""
    folder = _weights_folder()
    missing = [name for name in WEIGHT_FILES if not (folder / name).is_file()]
    return f"needs {', '.join(missing)} in $SPECKV_WEIGHTS ({folder})" if missing else ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    no_weights = _missing_weights()
    no_gpu = "" if torch is not None and torch.cuda.is_available() else "needs a CUDA device"
    for item in items:
        for marker, reason in (("model", no_weights), ("gpu", no_gpu)):
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def weights_dir() -> Path:
    """Folder holding `WEIGHT_FILES`; the test is skipped where one is missing."""
    if reason := _missing_weights():
        pytest.skip(reason)
    return _weights_folder()


@pytest.fixture
def few_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two prompts are enough for intervals, as far as arithmetic goes."""
    for module in ("bootstrap", "entrants"):
        monkeypatch.setattr(f"speckv.evaluation.{module}.MIN_PROMPTS", 2)
