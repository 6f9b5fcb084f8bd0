# SPDX-License-Identifier: Apache-2.0
"""`speckv export RUN --to TARGET`: a trained policy for a decoding library."""

import argparse
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from speckv.errors import ConfigError
from speckv.export import Source, make_policy, tables
from speckv.export.compiled import CompiledTable, compile_batches, compile_steps
from speckv.export.hf import write_custom_generate
from speckv.export.onnx import write_onnx
from speckv.files import replacing_folder
from speckv.runtime import Policy
from speckv.runtime.policy import load_controller
from speckv.runtime.storage import SUFFIX

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRequest:
    """A policy to export, with its training data; `compression` is for tables of one compression."""

    source: Source
    policy: Policy
    compression: str


def main(arguments: Sequence[str]) -> None:
    """Exports one policy."""
    options = _parser().parse_args(arguments)
    source = Source.find(options.run, cost=options.cost, traces=options.traces)
    if options.per_step:
        policy = _per_step(source, options.name)
    else:
        policy = make_policy(source, name=options.name, learns=False if options.frozen else None)
    compression = options.compression or policy.compressions[0]
    if compression not in policy.compressions:
        raise ConfigError(f"Expected --compression in {list(policy.compressions)}, got {compression!r}.")
    request = ExportRequest(source=source, policy=policy, compression=compression)
    stem = re.sub(r"[^\w.-]+", "-", policy.name).strip("-")
    default = f"{stem}{SUFFIX}" if options.to == "policy" else f"{stem}-{options.to}"
    folder = Path(options.out or default)
    if folder.exists() and not options.overwrite:
        raise ConfigError(
            f"Expected {folder} to be a new folder, but it exists. Name another with --out, or --overwrite."
        )
    with replacing_folder(folder) as new:
        TARGETS[options.to](request, new)
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        logger.info("wrote %s", path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="speckv export", description="Makes a policy ready for a library.")
    parser.add_argument("run", help="a run folder, a policy's folder, or `shipped`")
    parser.add_argument("--to", choices=sorted(TARGETS), default="policy", help="default: policy")
    parser.add_argument("--out", help="folder to write; default: NAME.speckv, or NAME-TARGET, here")
    parser.add_argument("--name", help="shown in tables; default: the controller's")
    parser.add_argument("--cost", help="name or path of a cost table; default: the run's")
    parser.add_argument("--traces", help="name or path of a trace file; default: the run's")
    parser.add_argument("--compression", help="of the target, for targets with one gamma a batch; default: the first")
    parser.add_argument(
        "--per-step", action="store_true", help="compile down to one gamma a step, by recent acceptance"
    )
    parser.add_argument("--frozen", action="store_true", help="a learner stops learning in the library")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing folder")
    return parser


def _per_step(source: Source, name: str | None) -> Policy:
    controller = load_controller(source.folder)
    name = name or controller.name
    table, losses = compile_steps(controller, source.traces, source.cost)
    for compression, loss in losses.items():
        gammas = ", ".join(map(str, table.gammas[compression]))
        logger.info(
            "%s once a step, %s: gamma %s as acceptance rises over %s; %s",
            name,
            compression,
            gammas,
            ", ".join(f"{edge:.2f}" for edge in table.edges),
            _describe_loss(loss, source),
        )
    return make_policy(source, table, name=f"{name}-per-step")


def _describe_loss(loss: float | None, source: Source) -> str:
    if loss is None:
        return "loss unknown: a replay cannot time a batch that is controlled token by token"
    word = "lost" if loss >= 0 else "gained"
    prompts = len(source.traces.select(split="test").prompt_ids)
    return f"{abs(loss):.1%} of its tokens a second {word} ({prompts} test prompts, replay on {source.cost.name})"


def _by_batch(
    write: Callable[[CompiledTable, tables.Origin, Path], object], request: ExportRequest, folder: Path
) -> None:
    source, policy, compression = request.source, request.policy, request.compression
    table = compile_batches(policy.controller, source.traces.select(compressions=[compression]), source.cost)
    for batch, gamma in table.gammas.items():
        loss = _describe_loss(table.loss[batch], source)
        logger.info("%s at batch %d, %s: gamma %d; %s", policy.name, batch, compression, gamma, loss)
    prompts = len(source.traces.select(split="test").prompt_ids)
    write(table, tables.Origin(policy=policy, compression=compression, cost=source.cost.name, prompts=prompts), folder)


TARGETS: Mapping[str, Callable[[ExportRequest, Path], object]] = {
    "hf-custom-generate": lambda request, folder: write_custom_generate(request.policy, folder),
    "onnx": lambda request, folder: write_onnx(request.policy, folder),
    "policy": lambda request, folder: request.policy.save(folder),
    "sglang": partial(_by_batch, tables.write_sglang),
    "vllm": partial(_by_batch, tables.write_vllm),
}
"""`--to` -> function that writes the folder."""
