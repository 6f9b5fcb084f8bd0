# SPDX-License-Identifier: Apache-2.0
"""`speckv export RUN --to TARGET`: a trained policy for a decoding library."""

import argparse
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NoReturn

from speckv.agents.self_timed import untold
from speckv.commands.help import render
from speckv.errors import ConfigError
from speckv.export import Source, make_policy, tables
from speckv.export.compiled import CompiledTable, compile_batches, compile_steps
from speckv.export.hf import write_custom_generate
from speckv.export.onnx import write_onnx
from speckv.files import replacing_folder
from speckv.runtime import Policy
from speckv.runtime.matching import warn_of_differences, warn_of_no_gain
from speckv.runtime.storage import SUFFIX
from speckv.types import OnlineLearner

logger = logging.getLogger(__name__)
DESCRIPTION = "Exports a policy for use in a decoding library."
EXAMPLES = (
    "speckv export runs/my-run",
    "speckv export shipped --to hf-custom-generate --out my-policy",
    "speckv export runs/my-run --to vllm --compression nf4",
)
TARGETS_HELP = (
    ("policy", "a folder that speckv.runtime.load reads, with NumPy alone"),
    ("hf-custom-generate", "a folder for transformers' `generate(custom_generate=FOLDER)`, without SpecKV"),
    ("onnx", "the decision as an ONNX graph, with its metadata"),
    ("sglang", "a table of one gamma per batch size for SGLang"),
    ("vllm", "a table of one gamma per batch size for vLLM"),
)


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
    policy = make_policy(source, name=options.name, learns=False if options.frozen else None)
    if options.learn_times:
        controller = untold(policy.controller, policy.compressions, gamma_max=policy.gamma_max)
        policy = replace(policy, controller=controller, learns=isinstance(controller, OnlineLearner))
    metadata = source.traces.metadata
    warn_of_differences(policy, target=metadata.target_id, draft=metadata.draft_id, cost=source.cost)
    if options.per_step or options.to not in ("policy", "hf-custom-generate"):
        policy = source.told(policy)
    if options.per_step:
        policy = _per_step(source, policy, options.name)
    compression = options.compression or policy.compressions[0]
    if compression not in policy.compressions:
        raise ConfigError(f"Expected --compression in {list(policy.compressions)}, got {compression!r}.")
    by_batch = options.compression or options.to in ("sglang", "vllm")
    for name in [compression] if by_batch else policy.compressions:
        warn_of_no_gain(policy, name, source.cost)
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


def help_text(usage: str) -> str:
    """The help of the command."""
    actions = [action for action in _parser()._actions if action.help != argparse.SUPPRESS]
    arguments = [(action.dest.upper(), str(action.help)) for action in actions if not action.option_strings]
    options = [(_shown(action), str(action.help)) for action in actions if action.option_strings]
    return render(
        usage, DESCRIPTION, EXAMPLES, [("Arguments", arguments), ("Options", options), ("Targets", TARGETS_HELP)]
    )


def _shown(action: argparse.Action) -> str:
    value = {"to": " TARGET"}.get(action.dest, f" {action.dest.upper()}")
    return f"{', '.join(action.option_strings)}{'' if action.nargs == 0 else value}"


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="speckv export", add_help=False)
    parser.add_argument("run", help="run folder, policy folder, or `shipped`")
    parser.add_argument("--to", choices=sorted(TARGETS), default="policy", help="target, see below; default: policy")
    parser.add_argument("--out", help="folder to write; default: NAME.speckv, or NAME-TARGET")
    parser.add_argument("--name", help="name shown in tables; default: the controller's")
    parser.add_argument("--cost", help="name or path of a cost table; default: the run's, or cpu-2core")
    parser.add_argument("--traces", help="name or path of a trace file; default: the run's")
    parser.add_argument(
        "--compression", help="target's compression, for targets with one gamma per batch size; default: the first"
    )
    parser.add_argument(
        "--per-step", action="store_true", help="reduces the policy to one gamma per decode step, by recent acceptance"
    )
    parser.add_argument(
        "--learn-times",
        action="store_true",
        help="lets the policy learn times, in place of its cost table",
    )
    parser.add_argument("--frozen", action="store_true", help="stops an online learner from learning in the library")
    parser.add_argument("--overwrite", action="store_true", help="replaces an existing folder")
    return parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"Expected options of `speckv export --help`, got: {message}.")


def _per_step(source: Source, policy: Policy, name: str | None) -> Policy:
    name = name or policy.name
    table, losses = compile_steps(policy.controller, source.traces, source.cost)
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
