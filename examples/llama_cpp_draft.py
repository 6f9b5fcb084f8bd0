# SPDX-License-Identifier: Apache-2.0
"""llama-cpp-python under a policy: a second model drafts as many tokens as the policy chooses.

    python examples/llama_cpp_draft.py shipped TARGET.gguf DRAFT.gguf "Write a haiku about rain."

The two files hold models of one vocabulary, such as Qwen2.5-Coder-1.5B-Instruct and 0.5B-Instruct. A run
folder or an exported policy may stand in place of `shipped`; `constant-3` drafts three tokens at every step.
"""

import os
import sys
import time

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from llama_cpp import Llama

from speckv import runtime
from speckv.integrations.llama_cpp import draft_model
from speckv.runtime.constant import ConstantGamma

MAX_NEW_TOKENS = 64


def main(folder: str, target_file: str, draft_file: str, text: str) -> None:
    """Decodes a prompt plainly and under the policy, and compares."""
    word, _, gamma = folder.partition("-")
    policy = runtime.Policy.of(ConstantGamma(int(gamma))) if word == "constant" else runtime.load(folder)
    settings = {"n_ctx": 1024, "flash_attn": True, "verbose": False}

    plain = Llama(target_file, **settings)
    drafter = draft_model(policy, Llama(draft_file, **settings), max_new_tokens=MAX_NEW_TOKENS)
    target = Llama(target_file, **settings, **drafter.target_options())
    drafter.attach(target)

    answers = []
    for name, llama in (("plain", plain), (policy.name, target)):
        begun = time.perf_counter()
        answer = llama.create_chat_completion(
            [{"role": "user", "content": text}], max_tokens=MAX_NEW_TOKENS, temperature=0.0
        )
        seconds = time.perf_counter() - begun
        answers.append(answer["choices"][0]["message"]["content"])
        sys.stdout.write(f"{name}: {answer['usage']['completion_tokens'] / seconds:.1f} tokens/s\n")
    sys.stdout.write(f"{answers[1]}\nthe same text: {answers[0] == answers[1]}; {drafter.totals}\n")
    sys.stdout.write(f"fallbacks: {dict(policy.warnings) or 'none'}\n")


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    main(*sys.argv[1:])
