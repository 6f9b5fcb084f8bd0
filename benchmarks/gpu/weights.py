# SPDX-License-Identifier: Apache-2.0
"""Stage `weights`: joins what was carried in parts, verifies it, and converts it once, before anything is timed.

Imports models late: without a folder there is nothing to wait for.
"""

from functools import partial
from pathlib import Path

from benchmarks.gpu.settings import Settings
from benchmarks.gpu.work import Work
from benchmarks.weights import MANIFEST, join
from speckv.errors import DataError


def run(settings: Settings, work: Work) -> None:
    """Prepares the folder that the settings name, or says that there is none."""
    if not settings.weights:
        work.piece("files", lambda: "no folder was given: random weights in the shapes of Llama stand in")
        return
    folder = Path(settings.weights)
    if (folder / MANIFEST).is_file():
        work.piece("join", lambda: [path.name for path in join(folder, folder)])
    work.piece("files", lambda: check(folder))
    if settings.tiny or work.pieces["files"]["status"] != "ok":
        return
    for path in _pair(folder):
        work.piece(f"convert {path.name}", partial(_convert, path))


def _pair(folder: Path) -> tuple[Path, Path]:
    from benchmarks import qwen  # late: see above

    return qwen.files(folder)


def _convert(path: Path) -> str:
    from speckv.models.gguf import converted_folder  # late: see above

    return converted_folder(path).name


def check(folder: Path) -> list[str]:
    """Names of the pair's files.

    Raises:
        DataError: naming those that are missing.
    """
    paths = _pair(folder)
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise DataError(
            f"Expected the Qwen pair's files in {folder}, missing: {', '.join(missing)}. Carry them in, or their parts "
            f"with {MANIFEST} (python -m benchmarks.weights split). Without them, random Llama shapes stand in."
        )
    return [path.name for path in paths]
