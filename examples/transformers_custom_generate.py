# SPDX-License-Identifier: Apache-2.0
"""Makes `generate` of transformers faster with a draft model, and prints tokens a second without and with it.

    python examples/transformers_custom_generate.py TARGET DRAFT "Write a Python function that reverses a list."

TARGET and DRAFT are hub ids, folders or GGUF files of two models with one tokenizer, such as
Qwen/Qwen2.5-Coder-1.5B-Instruct and Qwen/Qwen2.5-Coder-0.5B-Instruct. `FILE.speckv` as a fourth argument is a policy
of your own. The seconds are those of whole calls, prompt included, the fastest of three: run nothing else meanwhile.
"""

import logging
import sys
import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from speckv.integrations.transformers import custom_generate, prepare
from speckv.models import locate
from speckv.models.dtypes import resolve_dtype

MAX_NEW_TOKENS, REPEATS = 64, 3


def main(target_name: str, draft_name: str, text: str, policy: str | None = None) -> None:
    """Decodes a prompt plainly and with the draft, and compares."""
    logging.basicConfig(format="%(message)s")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    options = {"dtype": resolve_dtype("auto", device), "device_map": device}
    target, draft = (
        AutoModelForCausalLM.from_pretrained(locate(name), **options).eval() for name in (target_name, draft_name)
    )
    tokenizer = AutoTokenizer.from_pretrained(locate(target_name))
    if tokenizer.chat_template:
        message = {"role": "user", "content": text}
        text = str(tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True))
    inputs = tokenizer(text, return_tensors="pt").to(device)

    plain, plain_rate = timed(target, inputs)
    # These three lines are all that a program needs: the import above, `prepare`, and `custom_generate`.
    prepare(target, draft)
    ours, our_rate = timed(target, inputs, custom_generate=custom_generate, draft_model=draft, policy=policy)

    prompt_len = inputs["input_ids"].shape[1]
    print(tokenizer.decode(ours[0, prompt_len:], skip_special_tokens=True))
    same = plain.shape == ours.shape and bool((plain == ours).all())
    text_is = "the same text" if same else f"another text ({target.dtype}: docs/numerics.md on near-ties)"
    print(f"\nplain generate   {plain_rate:6.2f} tokens/s")
    print(f"custom_generate  {our_rate:6.2f} tokens/s: {our_rate / plain_rate:.2f} times as fast, {text_is}")


def timed(target: Any, inputs: Any, **options: Any) -> tuple[torch.Tensor, float]:
    """The text, and new tokens a second of the fastest of some whole calls, after a short call that warms up."""
    target.generate(**inputs, max_new_tokens=4, do_sample=False, **options)
    seconds = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        found = target.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False, **options)
        seconds.append(time.perf_counter() - begun)
    return found, (found.shape[1] - inputs["input_ids"].shape[1]) / min(seconds)


if __name__ == "__main__":
    if len(sys.argv) not in (4, 5):
        sys.exit(__doc__)
    main(*sys.argv[1:])
