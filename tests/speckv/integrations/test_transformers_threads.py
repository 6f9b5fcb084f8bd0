# SPDX-License-Identifier: Apache-2.0
"""`control` in several threads and contexts, and its warning where no call used the policy."""

import contextvars
import copy
import functools
import pickle
import threading
from base64 import b64encode
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import Qwen2ForCausalLM, TextIteratorStreamer

from speckv.errors import ConfigError
from speckv.integrations.transformers import control
from speckv.integrations.transformers.control import NEEDS
from speckv.integrations.transformers.embedded import Embedded
from speckv.runtime import Policy
from speckv.runtime.constant import ConstantGamma
from speckv.types import FloatArray, IntArray, StepOutcome
from tests.fakes import tiny_qwen
from tests.fakes_policies import Scheduled
from tests.fakes_requests import QwenPair, letters, prompt

GREEDY: dict[str, Any] = {"max_new_tokens": 30, "do_sample": False}


def policy(schedule: Scheduled) -> Policy:
    return Policy.of(schedule, learns=True, cost_ratio={"fp16": 0.3})


def together(work: Callable[[int], Any], count: int) -> list[Any]:
    """Runs pieces of work at the same time and returns their results."""
    barrier = threading.Barrier(count)

    def run(number: int) -> Any:
        barrier.wait()
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


def left_on(model: Qwen2ForCausalLM) -> set[str]:
    return {name for name in vars(model) if name in NEEDS or "speckv" in name}


@pytest.mark.slow
def test_threads_decode_with_one_target_each_under_its_own_policy(
    pair: QwenPair,
) -> None:
    target, draft = pair
    plain = [target.generate(prompt(seed), **GREEDY).tolist() for seed in range(4)]
    schedules = [Scheduled.turns(gamma) for gamma in range(4)]

    def work(number: int) -> bool:
        same = True
        for _ in range(3):
            with control(target, draft, policy(schedules[number])):
                ours = target.generate(prompt(number), assistant_model=draft, **GREEDY)
            same = same and ours.tolist() == plain[number]
        return same

    assert together(work, 4) == [True] * 4
    for gamma, schedule in enumerate(schedules):
        assert len(schedule.chosen) == 3
        assert {said for request in schedule.chosen for said in request} == {gamma}
        assert all(sum(o.num_emitted for o in request) == 29 for request in schedule.outcomes)
    assert not left_on(target)


def test_a_thread_without_a_block_belongs_to_the_only_one_that_is_open(
    pair: QwenPair,
) -> None:
    target, draft = pair
    plain, schedule = target.generate(prompt(0), **GREEDY).tolist(), Scheduled.turns(2)
    other = tiny_qwen(3)

    def generated(assistant: Any) -> Any:
        return target.generate(prompt(0), assistant_model=assistant, **GREEDY).tolist()

    with control(target, draft, policy(schedule)), ThreadPoolExecutor(1) as pool:
        assert pool.submit(generated, other).result() == plain, "another draft is transformers' own business"
        assert not any(schedule.chosen)
        assert pool.submit(generated, draft).result() == plain
    assert len(schedule.chosen) == 1


def test_a_text_is_streamed_from_a_thread_that_is_started_inside_a_block(
    pair: QwenPair,
) -> None:
    target, draft = pair
    schedule, tokenizer = Scheduled.turns(3), letters()
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
    with control(target, draft, policy(schedule)):
        options = {"streamer": streamer, "assistant_model": draft, **GREEDY}
        thread = threading.Thread(target=target.generate, args=(prompt(0),), kwargs=options)
        thread.start()
        text = "".join(streamer)
        thread.join()
    assert text == tokenizer.decode(target.generate(prompt(0), **GREEDY)[0, prompt(0).shape[1] :])
    assert len(schedule.chosen) == 1


@pytest.mark.slow
def test_a_thread_outside_several_blocks_uses_transformers_own_generation(
    pair: QwenPair,
) -> None:
    target, draft = pair
    plain, schedules = target.generate(prompt(0), **GREEDY).tolist(), (Scheduled.turns(2), Scheduled.turns(3))

    def generated() -> Any:
        return target.generate(prompt(0), assistant_model=draft, **GREEDY).tolist()

    def blocks() -> None:
        with control(target, draft, policy(schedules[0])), ThreadPoolExecutor(2) as pool:
            inside, done = threading.Event(), threading.Event()

            def second() -> None:
                with control(target, draft, policy(schedules[1])):
                    inside.set()
                    assert done.wait(60)

            waiting = pool.submit(second)
            assert inside.wait(60)
            assert pool.submit(generated).result() == plain
            assert not any(said for schedule in schedules for said in schedule.chosen)
            assert pool.submit(contextvars.copy_context().run, generated).result() == plain
            done.set()
            waiting.result()

    with pytest.warns(UserWarning, match="only in threads outside"):
        blocks()
    assert [any(schedule.chosen) for schedule in schedules] == [True, False]


def test_blocks_may_end_in_any_order(pair: QwenPair) -> None:
    target, draft = pair
    one, other = (contextvars.copy_context() for _ in range(2))
    first, second = Scheduled.turns(1), Scheduled.turns(2)
    blocks = [control(target, draft, policy(schedule)) for schedule in (first, second)]
    one.run(blocks[0].__enter__)
    other.run(blocks[1].__enter__)
    for context in (one, other):
        context.run(lambda: target.generate(prompt(0), assistant_model=draft, **GREEDY))
    one.run(blocks[0].__exit__, None, None, None)
    other.run(lambda: target.generate(prompt(0), assistant_model=draft, **GREEDY))
    other.run(blocks[1].__exit__, None, None, None)
    assert (len(first.chosen), len(second.chosen)) == (1, 2)
    assert not left_on(target)


def test_a_method_that_the_target_had_before_is_called_and_put_back(
    pair: QwenPair,
) -> None:
    target: Any = tiny_qwen(0)
    draft = pair[1]
    original, calls = target._get_stopping_criteria, list[int]()

    def mine(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return original(*args, **kwargs)

    vars(target)["_get_stopping_criteria"] = functools.wraps(original)(mine)
    with control(target, draft, policy(Scheduled.turns(2))):
        target.generate(prompt(0), assistant_model=draft, **GREEDY)
    assert calls == [1]
    assert left_on(target) == {"_get_stopping_criteria"}


@pytest.mark.slow
def test_a_copy_of_the_target_made_inside_a_block_is_not_controlled(
    pair: QwenPair,
) -> None:
    target, draft = pair
    plain, schedule = target.generate(prompt(0), **GREEDY).tolist(), Scheduled.turns(2)
    with control(target, draft, policy(schedule)):
        copies = copy.deepcopy(target), pickle.loads(pickle.dumps(target))
        for other in copies:
            assert other.generate(prompt(0), assistant_model=draft, **GREEDY).tolist() == plain
        assert not any(schedule.chosen)
        target.generate(prompt(0), assistant_model=draft, **GREEDY)
    for other in copies:
        with control(other, draft, policy(Scheduled.turns(1))):
            assert other.generate(prompt(0), assistant_model=draft, **GREEDY).tolist() == plain
        assert not left_on(other)


# -- policies that learn ---------------------------------------------------------------------------------------------


class Counts:
    """A learner for requests that interleave; each outcome must follow its own request's choice."""

    name = "counts"
    charges_decision = False
    learns = True

    def __init__(self) -> None:
        self.asked: int | None = None
        self.learned, self.wrong = 0, 0

    def __deepcopy__(self, memo: object) -> "Counts":
        return self

    def save_request(self) -> object:
        return self.asked

    def load_request(self, request: object) -> None:
        self.asked = request  # type: ignore[assignment]

    def reset(self) -> None:
        self.asked = None

    def act(self, observation: FloatArray) -> int:  # noqa: ARG002
        self.asked = int(np.random.default_rng().integers(0, 4))
        return self.asked

    def act_batch(self, observations: FloatArray) -> IntArray:
        raise NotImplementedError

    def learn(self, outcome: StepOutcome) -> None:
        self.wrong += outcome.gamma != min(self.asked or 0, outcome.gamma)
        self.learned += 1


def files(folder: Path) -> dict[str, str]:
    Policy.of(ConstantGamma(3), cost_ratio={"fp16": 0.3}).save(folder)
    return {path.name: b64encode(path.read_bytes()).decode() for path in folder.iterdir()}


@pytest.mark.slow
def test_threads_share_what_a_policy_learns(pair: QwenPair) -> None:
    target, draft = pair
    counts = Counts()
    made, plain = Policy.of(counts, learns=True), target.generate(prompt(0), **GREEDY).tolist()
    assert made.interleaves
    passes: list[int] = []
    hook = target.register_forward_hook(lambda *_: passes.append(1))

    def work(_: int) -> bool:
        with control(target, draft, made):
            return bool(target.generate(prompt(0), assistant_model=draft, **GREEDY).tolist() == plain)

    assert together(work, 4) == [True] * 4
    hook.remove()
    assert counts.learned == len(passes) - 4  # all passes but the four prompts
    assert counts.wrong == 0
    assert not made.warnings


@pytest.mark.slow
@pytest.mark.parametrize("interleaves", [True, False])
def test_threads_generate_with_the_policy_of_one_folder(
    interleaves: bool, pair: QwenPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read once; where its requests cannot interleave, one text at a time."""
    target, draft = pair
    loaded, schedule = list[str](), Scheduled.turns(3)

    def load(folder: str, **_: Any) -> Policy:
        loaded.append(folder)
        return policy(schedule) if not interleaves else Policy.of(ConstantGamma(3))

    monkeypatch.setattr(Policy, "load", load)
    embedded, plain = Embedded(files(tmp_path)), target.generate(prompt(0), **GREEDY).tolist()
    found = together(lambda _: embedded.generate(target, prompt(0), draft, **GREEDY).tolist(), 4)
    assert found == [plain] * 4
    assert len(loaded) == 1
    if not interleaves:
        assert len(schedule.chosen) == 4
        assert all(sum(o.num_emitted for o in request) == 29 for request in schedule.outcomes)
    assert not left_on(target)


# -- blocks that come to nothing -------------------------------------------------------------------------------------


UNUSED: dict[str, tuple[Sequence[dict[str, Any]], str]] = {
    "no call": ([], "was not called on the target"),
    "no draft": ([{}, {}], "2 calls of generate decoded without the draft"),
    "beams": ([{"num_beams": 2, "assistant_model": True}], "1 calls of generate .* num_beams at 1"),
}


@pytest.mark.parametrize("what", UNUSED)
def test_a_block_in_which_no_call_used_the_policy_warns(what: str, pair: QwenPair) -> None:
    target, draft = pair
    calls, message = UNUSED[what]

    def run() -> None:
        with control(target, draft, policy(Scheduled.turns(2))):
            for options in calls:
                given = options | ({"assistant_model": draft} if options.get("assistant_model") else {})
                target.generate(prompt(0), **GREEDY, **given)

    with pytest.warns(UserWarning, match=message) as caught:
        run()
    assert caught[-1].filename == __file__


def test_a_block_that_ends_with_an_error_does_not_warn(pair: QwenPair) -> None:
    with pytest.raises(KeyError, match="mine"), control(*pair, policy(Scheduled.turns(2))):
        raise KeyError("mine")


def test_an_older_transformers_is_refused_and_nothing_is_left_behind(
    pair: QwenPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, draft = pair
    monkeypatch.setattr(type(target), "_get_candidate_generator", lambda self, input_ids: (self, input_ids))
    with pytest.raises(ConfigError, match=r"from 5\.23"), control(target, draft, policy(Scheduled.turns(2))):
        pass
    assert not left_on(target)
