# SPDX-License-Identifier: Apache-2.0
"""A program that has transformers and no SpecKV: generates as it is told, and says what came of it.

    python -I without_speckv.py TARGET DRAFT < calls.json > answers.json

A call is `generate`'s options with the prompt's ids under `ids`. An answer holds the `text` and how many tokens were
`drafted` at each step, or an `error`. `target` names another target, loaded with its own code; `once` a folder whose
function is loaded and then called; `ends_after` a number of calls of a stopping criterion; `threads` how many threads
make the call at the same time, for an answer that holds their `texts`.
"""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

ABSENT = ("speckv", "pyarrow")


class Absence:
    """Makes packages as good as not installed."""

    def find_spec(self, name: str, *_: object) -> None:
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def absent(name: str) -> bool:
    try:
        __import__(name)
    except ModuleNotFoundError:
        return True
    return False


class CallCount:
    """A stopping criterion that is met at a call number."""

    def __init__(self, number: int) -> None:
        self.left = number

    def __call__(self, input_ids: Any, scores: Any) -> Any:  # noqa: ARG002
        self.left -= 1
        return input_ids.new_full((1,), self.left <= 0).bool()


def answered(target: Any, draft: Any, call: dict[str, Any]) -> dict[str, Any]:
    """What one call of `generate` came to."""
    import torch

    widths: list[int] = []
    hook = target.register_forward_pre_hook(
        lambda _, args, options: widths.append((args[0] if args else options["input_ids"]).shape[1]), with_kwargs=True
    )
    ids = torch.tensor(call.pop("ids"))
    if call.pop("assisted", True):
        call["assistant_model"] = draft
    generate = target.generate
    if (folder := call.pop("once", None)) is not None:
        generate = partial(target.load_custom_generate(folder, trust_remote_code=True), model=target)
    if (number := call.pop("ends_after", None)) is not None:
        call["stopping_criteria"] = [CallCount(number)]
    threads = call.pop("threads", 0)
    torch.manual_seed(0)
    try:
        if threads:
            with ThreadPoolExecutor(threads) as pool:
                return {"texts": list(pool.map(lambda _: generate(ids, **call)[0].tolist(), range(threads)))}
        text = generate(ids, **call)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    finally:
        hook.remove()
    return {"text": text[0].tolist(), "drafted": [width - 1 for width in widths[1:]]}


def main(target_folder: str, draft_folder: str) -> None:
    sys.meta_path.insert(0, Absence())
    found = [name for name in ABSENT if not absent(name)]
    from transformers import AutoModelForCausalLM

    def loaded(folder: str, **options: Any) -> Any:
        return AutoModelForCausalLM.from_pretrained(folder, dtype="float64", **options).eval()

    target, draft = loaded(target_folder), loaded(draft_folder)
    answers = []
    for call in json.load(sys.stdin):
        other = call.pop("target", None)
        answers.append(answered(loaded(other, trust_remote_code=True) if other else target, draft, call))
    found += [name for name in sys.modules if name.partition(".")[0] in ABSENT]
    json.dump({"found": found, "answers": answers}, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
