# SPDX-License-Identifier: Apache-2.0
"""Copies of objects with state: as one group, without the models inside them, or refused."""

import functools
import threading
from typing import Any

import pytest
import torch
from transformers import Qwen2Tokenizer

from speckv.errors import ConfigError
from speckv.models.processors import Copier
from tests.fakes import LETTERS


class Holder:
    def __init__(self, **held: Any) -> None:
        self.__dict__.update(held)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


def prompt_length(text: str) -> int:
    return len(text)


class Slotted:
    __slots__ = ("model", "seen")

    def __init__(self, model: torch.nn.Module) -> None:
        self.model, self.seen = model, [1]


def test_models_tokenizers_and_locks_are_shared_wherever_they_are_held() -> None:
    model, lock = torch.nn.Linear(2, 2), threading.Lock()
    tokenizer = Qwen2Tokenizer(vocab={c: i for i, c in enumerate(LETTERS)}, merges=[], unk_token="a")
    held = Holder(deep=[{"model": model}, (tokenizer,)], lock=lock, call=functools.partial(print, model), seen=[])
    (new,) = Copier([held], ()).copies()
    assert isinstance(new, Holder)
    assert new.deep[0]["model"] is model
    assert new.deep[1][0] is tokenizer
    assert new.lock is lock
    assert new.call.args[0] is model
    assert new.seen is not held.seen
    (slotted,) = Copier([Slotted(model)], ()).copies()
    assert isinstance(slotted, Slotted)
    assert slotted.model is model


def test_state_shared_by_two_objects_is_shared_by_their_copies() -> None:
    state: list[int] = []
    one, other = Copier([Holder(state=state), Holder(state=state)], ()).copies()
    assert isinstance(one, Holder)
    assert isinstance(other, Holder)
    assert one.state is other.state is not state


def test_only_the_first_objects_are_copied_where_a_number_is_given() -> None:
    held = [Holder(state=[]), Holder(state=[])]
    (new,) = Copier(held, ()).copies(1)
    assert isinstance(new, Holder)
    assert new is not held[0]


def test_copies_start_from_the_present_state() -> None:
    held = Holder(count=0)
    copier = Copier([held], ())
    vars(held)["count"] = 3
    (new,) = copier.copies()
    assert isinstance(new, Holder)
    assert new.count == 3


def test_objects_without_state_are_used_as_they_are() -> None:
    class Stateless(Holder):
        def __deepcopy__(self, memo: object) -> "Stateless":
            return self

    for objects, stateless in (([Stateless()], ()), ([Holder()], (Holder,)), ([len, prompt_length], ()), ([], ())):
        copier = Copier(objects, stateless)
        assert not any(copier.copied)
        assert all(new is old for new, old in zip(copier.copies(), objects, strict=True))


def test_an_object_that_cannot_be_copied_is_refused_by_name() -> None:
    with pytest.raises(
        ConfigError, match=r"got Holder, for which copy.deepcopy raises TypeError.*__deepcopy__ returns self"
    ):
        Copier([Holder(generator=(i for i in range(3)))], ())


def test_functions_are_copied_with_their_closures_and_defaults() -> None:
    model, seen = torch.nn.Linear(1, 1), list[int]()
    count = 0

    def counts(new: int, kept: list[int] = [], *, more: dict[str, int] = {}) -> tuple[int, ...]:  # noqa: B006
        nonlocal count
        count += new
        kept.append(new)
        seen.append(new)
        more["calls"] = more.get("calls", 0) + 1
        return count, len(kept), len(seen), more["calls"], id(model)

    def reads() -> int:
        return count

    copier = Copier([counts, reads], ())
    assert copier.copied == (True, True)
    copied, reading = copier.copies()
    assert callable(copied)
    assert callable(reading)
    assert [copied(2), copied(3)] == [(2, 1, 1, 1, id(model)), (5, 2, 2, 2, id(model))]
    assert (reading(), reads(), seen) == (5, 0, [])
    assert counts(1) == (1, 1, 1, 1, id(model))


def test_a_function_that_cannot_be_copied_is_refused_by_name() -> None:
    source = (i for i in range(3))

    def draws() -> int:
        return next(source)

    with pytest.raises(ConfigError, match=r"got draws, for which"):
        Copier([draws], ())


def test_a_function_may_use_a_variable_that_is_assigned_later() -> None:
    def calls() -> object:
        return later

    (copied,) = Copier([calls], ()).copies()
    later = 1
    assert calls() == later
    with pytest.raises(NameError, match="later"):
        copied()  # type: ignore[operator]
