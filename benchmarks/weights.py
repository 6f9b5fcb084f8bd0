# SPDX-License-Identifier: Apache-2.0
"""Cuts weight files into parts small enough to carry, and joins them again, verified.

    python -m benchmarks.weights split qwen2.5-coder-*.gguf --to parts
    python -m benchmarks.weights join parts --to weights

A part holds 60 MB at most; `parts.json` beside them gives sizes and SHA-256 of files and parts. Both commands may be
interrupted and run again: what is there and right is kept. Parts may come one by one; `join` names those that it lacks.
"""

import argparse
import hashlib
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from speckv.errors import DataError, SpecKVError
from speckv.files import replacing, write_atomically

logger = logging.getLogger(__name__)
MANIFEST = "parts.json"
PART_BYTES = 60_000_000
FORMAT = "speckv-parts-1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A part, or a whole file: its name, size and SHA-256."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """A file and its parts, in order."""

    whole: Piece
    parts: tuple[Piece, ...]


def split(files: Sequence[Path], folder: Path, *, part_bytes: int = PART_BYTES) -> list[Split]:
    """Cuts files into parts and adds them to the manifest of a folder.

    Args:
        files: Whole files, each of another name.
        folder: Where parts and manifest go; files of an existing manifest stay in it.
        part_bytes: Most bytes of a part.

    Raises:
        DataError: if a file is missing or empty, or two have one name.
    """
    names = [path.name for path in files]
    if len(set(names)) < len(names):
        raise DataError(f"Expected files of different names, got {names}. Rename one of them.")
    missing = [str(path) for path in files if not path.is_file() or path.stat().st_size == 0]
    if missing:
        raise DataError(f"Expected files with something in them, found none at {', '.join(missing)}. Check the paths.")
    made = [_split_one(path, folder, part_bytes) for path in files]
    known = {s.whole.name: s for s in (read_manifest(folder) if (folder / MANIFEST).is_file() else [])}
    known |= {s.whole.name: s for s in made}
    content = {"format": FORMAT, "files": [asdict(s) for s in known.values()]}
    write_atomically(folder / MANIFEST, json.dumps(content, indent=1) + "\n")
    return made


def _split_one(path: Path, folder: Path, part_bytes: int) -> Split:
    whole = hashlib.sha256()
    parts: list[Piece] = []
    with path.open("rb") as stream:
        while data := stream.read(part_bytes):
            whole.update(data)
            part = Piece(
                name=f"{path.name}.part-{len(parts):04d}", size=len(data), sha256=hashlib.sha256(data).hexdigest()
            )
            if wrong(folder, part):
                write_atomically(folder / part.name, data)
            parts.append(part)
    return Split(
        whole=Piece(name=path.name, size=sum(p.size for p in parts), sha256=whole.hexdigest()), parts=tuple(parts)
    )


def join(folder: Path, to: Path) -> list[Path]:
    """Puts every file of a manifest together, unless it is there and right.

    Args:
        folder: Holds parts and manifest.
        to: Where whole files go; may be the same folder.

    Returns:
        The files, in the manifest's order.

    Raises:
        DataError: naming the parts that are missing or damaged, after all files were joined that could be.
    """
    joined, problems = [], []
    for found in read_manifest(folder):
        target = to / found.whole.name
        joined.append(target)
        if not wrong(to, found.whole):
            continue
        bad = [complaint for part in found.parts if (complaint := wrong(folder, part))]
        if bad:
            problems += bad
            continue
        with replacing(target) as partial, partial.open("wb") as stream:
            for part in found.parts:
                stream.write((folder / part.name).read_bytes())
        if complaint := wrong(to, found.whole):
            target.unlink()
            problems.append(f"{complaint}, though its parts are right: the manifest contradicts itself, split again")
    if problems:
        raise DataError(
            f"{folder}: expected every part as {MANIFEST} lists it; {'; '.join(problems)}. "
            "Carry these again, then join again: the rest is kept."
        )
    return joined


def wrong(folder: Path, piece: Piece) -> str:
    """What is wrong with a part or file on disk; "" if nothing."""
    path = folder / piece.name
    if not path.is_file():
        return f"{piece.name} is missing"
    if path.stat().st_size != piece.size:
        return f"{piece.name} has {path.stat().st_size} bytes, not {piece.size}"
    with path.open("rb") as stream:
        same = hashlib.file_digest(stream, "sha256").hexdigest() == piece.sha256
    return "" if same else f"{piece.name} is damaged (another SHA-256)"


def read_manifest(folder: Path) -> list[Split]:
    """Reads which files a folder holds parts of.

    Raises:
        DataError: if there is no manifest, or it is damaged.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise DataError(f"{path}: expected format {FORMAT!r}, got {content['format']!r}. Split the files again.")
        return [
            Split(whole=_piece(entry["whole"]), parts=tuple(_piece(part) for part in entry["parts"]))
            for entry in content["files"]
        ]
    except FileNotFoundError as error:
        raise DataError(
            f"Expected a manifest at {path}, found none. Make one: python -m benchmarks.weights split"
        ) from (error)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is not a manifest of parts ({error!r}). Carry it again, or split again.") from error


def _piece(record: Any) -> Piece:
    piece = Piece(**record)
    if Path(piece.name).name != piece.name:
        raise DataError(
            f"Expected the plain name of a file in the manifest, got {piece.name!r}. Split the files again."
        )
    return piece


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.weights",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    cut = commands.add_parser("split", help="cut files into parts")
    cut.add_argument("files", type=Path, nargs="+")
    cut.add_argument("--to", type=Path, required=True, help="folder of the parts")
    cut.add_argument("--part-bytes", type=int, default=PART_BYTES, help="most bytes of a part (default: %(default)s)")
    put = commands.add_parser("join", help="join and verify every file whose parts a folder holds")
    put.add_argument("folder", type=Path)
    put.add_argument("--to", type=Path, required=True, help="folder of the whole files")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one of the commands; returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = parse(arguments)
    try:
        if options.command == "split":
            if options.part_bytes < 1:
                raise DataError(f"Expected --part-bytes of at least 1, got {options.part_bytes}.")
            for found in split(options.files, options.to, part_bytes=options.part_bytes):
                logger.info("%s: %d parts, %d bytes", found.whole.name, len(found.parts), found.whole.size)
        else:
            for path in join(options.folder, options.to):
                logger.info("%s: whole and verified", path)
    except SpecKVError as error:
        logger.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
