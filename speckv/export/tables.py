# SPDX-License-Identifier: Apache-2.0
"""A policy as the numbers that a serving library takes in its settings: one gamma a batch, or one gamma.

Every folder holds a README.md that says what was lost on the way, and whether the file was ever tried.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from speckv.errors import ConfigError
from speckv.export.compiled import CompiledConstant, CompiledTable
from speckv.files import canonical_json, write_atomically
from speckv.runtime import Policy

README = "README.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What the numbers come from.

    Attributes:
        policy: What was compiled down.
        compression: Of the target.
        cost: Name of the clock that the loss was replayed on.
        prompts: Test prompts that it was replayed on.
    """

    policy: Policy
    compression: str
    cost: str
    prompts: int

    @property
    def draft(self) -> str:
        """Id of the draft model, as it was recorded."""
        return str(self.policy.trained_on.get("draft", "DRAFT"))

    @property
    def target(self) -> str:
        """Id of the target model, as it was recorded."""
        return str(self.policy.trained_on.get("target", "TARGET"))


class Range(NamedTuple):
    """Batches that share a gamma.

    Attributes:
        first: Smallest batch.
        last: Largest batch; for the last range, the largest that was measured.
        gamma: In tokens.
    """

    first: int
    last: int
    gamma: int


def ranges(table: CompiledTable) -> list[Range]:
    """Batches from 1 up, each with the gamma of the nearest measured one, of the smaller where two are as near.

    >>> ranges(CompiledTable(gammas={1: 5, 4: 3, 16: 3, 32: 0}, loss={}))
    [Range(first=1, last=2, gamma=5), Range(first=3, last=24, gamma=3), Range(first=25, last=32, gamma=0)]
    """
    measured = sorted(table.gammas)
    lasts = [*((a + b) // 2 for a, b in pairwise(measured)), measured[-1]]
    found: list[Range] = []
    for batch, last in zip(measured, lasts, strict=True):
        gamma = table.gammas[batch]
        if found and found[-1].gamma == gamma:
            found[-1] = found[-1]._replace(last=last)
        else:
            found.append(Range(found[-1].last + 1 if found else 1, last, gamma))
    return found


def write_vllm(table: CompiledTable, origin: Origin, folder: Path) -> list[Path]:
    """Writes `speculative_config.json`, for `vllm serve --speculative-config`.

    Args:
        table: Gamma by batch.
        origin: For the README.
        folder: Where to.

    Raises:
        ConfigError: if no batch gains by a draft.
    """
    spans = ranges(table)
    most = _drafting(origin, *(span.gamma for span in spans))
    config = {
        "method": "draft_model",
        "model": origin.draft,
        "num_speculative_tokens": most,
        "num_speculative_tokens_per_batch_size": [list(span) for span in spans],
    }
    use = (
        f'vllm serve {origin.target} --speculative-config "$(cat speculative_config.json)"\n\n'
        "The last gamma also serves batches beyond its range. Change `method` and `model` for another kind of draft, "
        "but then the numbers were tuned for something else."
    )
    tried = "vLLM 0.32 decoded on a CPU as such a table of two ranges said. No time was measured."
    return _written(folder, "speculative_config.json", canonical_json(config), origin, "vLLM", use, tried, table)


def write_sglang(table: CompiledTable, origin: Origin, folder: Path) -> list[Path]:
    """Writes `adaptive.json`, for `--speculative-adaptive-config` of SGLang; arguments as for `write_vllm`.

    A batch takes the entry with the greatest key that is not above it, and an entry with one candidate never changes.
    """
    spans = ranges(table)
    most = _drafting(origin, *(span.gamma for span in spans))
    config = {str(span.first): {"candidate_steps": [span.gamma]} for span in spans}
    use = (
        f"python -m sglang.launch_server --model-path {origin.target} --speculative-algorithm EAGLE3 \\\n"
        f"  --speculative-draft-model-path EAGLE_HEAD --speculative-eagle-topk 1 --speculative-num-steps {most} \\\n"
        f"  --speculative-num-draft-tokens {most + 1} \\\n"
        "  --speculative-adaptive --speculative-adaptive-config adaptive.json"
        "\n\nSGLang adapts EAGLE and EAGLE3 drafts only (0.5.23), with topk 1. The policy was trained on another kind "
        "of draft, so train one on recordings of yours where the two differ much."
    )
    tried = "Keys and meaning were read in SGLang 0.5.23. No server was started with it."
    return _written(folder, "adaptive.json", canonical_json(config), origin, "SGLang", use, tried, table)


def write_trtllm(table: CompiledTable, origin: Origin, folder: Path) -> list[Path]:
    """Writes a `draft_len_schedule` for TensorRT-LLM in both meanings that it has had; arguments as for `write_vllm`.

    A key was the smallest batch of a range at first, and is the largest one since pull request 10860.
    """
    spans = ranges(table)
    most = _drafting(origin, *(span.gamma for span in spans))
    if spans[0].gamma != most:
        raise ConfigError(
            f"Expected the deepest drafts at batch 1, as TensorRT-LLM does, got {[tuple(span) for span in spans]}. "
            "Export one constant (--to llama-server prints it), and set max_draft_len to it."
        )
    from_batch = {span.first: span.gamma for span in spans}
    up_to_batch = {span.last: span.gamma for span in spans}
    first = folder / "from_batch.yaml"
    write_atomically(first, _schedule(origin, most, from_batch))
    use = (
        f"trtllm-serve {origin.target} --extra_llm_api_options up_to_batch.yaml\n\n"
        "`up_to_batch.yaml` is for releases that contain pull request 10860 (the 1.3 series): a key is the largest "
        f"batch of its range, and beyond {spans[-1].last} sequences nothing is drafted. `from_batch.yaml` is for those "
        "before it (1.2): a key is the smallest batch. The wrong one of the two is accepted without a word, so look "
        "up `draft_len_schedule` in your release."
    )
    tried = "Untested: written from TensorRT-LLM's documentation."
    return [
        first,
        *_written(
            folder,
            "up_to_batch.yaml",
            _schedule(origin, most, up_to_batch),
            origin,
            "TensorRT-LLM",
            use,
            tried,
            table,
        ),
    ]


def write_openvino(constant: CompiledConstant, origin: Origin, folder: Path) -> list[Path]:
    """Writes `generation.json` with OpenVINO GenAI's constant.

    Args:
        constant: Gamma.
        origin: For the README.
        folder: Where to.

    Raises:
        ConfigError: if nothing is gained by a draft.
    """
    gamma = _drafting(origin, constant.gamma)
    use = (
        f"config = openvino_genai.GenerationConfig(max_new_tokens=256, num_assistant_tokens={gamma})\n\n"
        "Or merge `generation.json` into the target's generation_config.json. `assistant_confidence_threshold` must "
        "stay unset: OpenVINO takes one of the two. Its stateful pipeline changes the number as it goes."
    )
    tried = "Untested: written from OpenVINO GenAI's documentation."
    text = canonical_json({"num_assistant_tokens": gamma})
    return _written(folder, "generation.json", text, origin, "OpenVINO GenAI", use, tried, constant)


def write_llama_server(constant: CompiledConstant, origin: Origin, folder: Path) -> list[Path]:
    """Writes `flags.txt` with llama-server's arguments; arguments as for `write_openvino`."""
    gamma = _drafting(origin, constant.gamma)
    use = (
        "llama-server --model TARGET.gguf --model-draft DRAFT.gguf $(cat flags.txt)\n\n"
        "A least probability of 0 switches off its own rule for ending drafts, which the constant was not tuned with. "
        "Releases before the flags were renamed say --draft-max, --draft-min and --draft-p-min."
    )
    tried = "Untested: written from llama.cpp's source. In Python, speckv.integrations runs the policy itself."
    text = f"--spec-draft-n-max {gamma} --spec-draft-n-min 0 --spec-draft-p-min 0.0\n"
    return _written(folder, "flags.txt", text, origin, "llama-server", use, tried, constant)


def _drafting(origin: Origin, *gammas: int) -> int:
    most = max(gammas)
    if most < 1:
        raise ConfigError(
            f"Expected a policy that gains by drafting, but compiled down {origin.policy.name!r} drafts nothing for "
            f"{origin.compression} on {origin.cost}. Decode without a draft there."
        )
    return most


def _schedule(origin: Origin, most: int, schedule: Mapping[int, int]) -> str:
    lines = [f"    {batch}: {gamma}" for batch, gamma in schedule.items()]
    head = ["speculative_config:", "  decoding_type: Draft_Target", f"  max_draft_len: {most}"]
    # A JSON string is a YAML string, whatever a path holds.
    return "\n".join(
        [*head, f"  speculative_model: {json.dumps(origin.draft)}", "  draft_len_schedule:", *lines, ""],
    )


def _written(
    folder: Path,
    name: str,
    text: str,
    origin: Origin,
    library: str,
    use: str,
    tried: str,
    compiled: CompiledTable | CompiledConstant,
) -> list[Path]:
    command, *notes = use.split("\n\n")
    lines = [
        f"# {origin.policy.name} for {library}",
        "",
        f"`{name}` is what is left of the SpecKV policy `{origin.policy.name}` where a library takes numbers alone. "
        f"Trained on: target {origin.target}, draft {origin.draft}; here for a target in {origin.compression}.",
        "",
        *_losses(compiled),
        "",
        f"Lost, of the policy's tokens a second: replay of {origin.prompts} test prompts on the cost table "
        f"`{origin.cost}`. It holds for that pair and that clock; nothing was timed inside {library}.",
        "",
        "```",
        command,
        "```",
        "",
        *notes,
        "",
        f"Tested: {tried}",
        "",
    ]
    write_atomically(folder / name, text)
    write_atomically(folder / README, "\n".join(lines))
    return [folder / name, folder / README]


def _losses(compiled: CompiledTable | CompiledConstant) -> Sequence[str]:
    if isinstance(compiled, CompiledConstant):
        return [f"| gamma | lost |\n|---|---|\n| {compiled.gamma} | {compiled.loss:.1%} |"]
    losses = {b: compiled.loss[str(b)] for b in compiled.gammas}
    texts = {b: "not known" if loss is None else f"{loss:.1%}" for b, loss in losses.items()}
    rows = [f"| {b} | {gamma} | {texts[b]} |" for b, gamma in sorted(compiled.gammas.items())]
    only = len(compiled.gammas) == 1
    note = ["", "The clock was measured at one batch alone, so every batch gets that one's gamma."] if only else []
    return ["| batch | gamma | lost |", "|---|---|---|", *rows, *note]
