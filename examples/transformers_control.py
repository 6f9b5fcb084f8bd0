# SPDX-License-Identifier: Apache-2.0
"""transformers' assisted generation under a policy: `shipped`, a run folder, or an exported one.

    python examples/transformers_control.py shipped TARGET DRAFT "Write a haiku about rain."

TARGET and DRAFT are hub ids, folders or GGUF files of models with one tokenizer, such as
Qwen/Qwen2.5-Coder-1.5B-Instruct and Qwen/Qwen2.5-Coder-0.5B-Instruct.
"""

import sys
import time

from transformers import AutoModelForCausalLM, AutoTokenizer

from speckv.integrations.transformers import control
from speckv.models import locate


def main(folder: str, target_id: str, draft_id: str, text: str) -> None:
    """Decodes a prompt plainly and under the policy, and compares."""
    tokenizer = AutoTokenizer.from_pretrained(locate(target_id))
    target, draft = (AutoModelForCausalLM.from_pretrained(locate(name)).eval() for name in (target_id, draft_id))
    inputs = tokenizer(text, return_tensors="pt").to(target.device)
    options = {"max_new_tokens": 64, "do_sample": False}

    begun = time.perf_counter()
    plain = target.generate(**inputs, **options)
    between = time.perf_counter()
    with control(target, draft, folder) as policy:
        ours = target.generate(**inputs, assistant_model=draft, **options)
    ended = time.perf_counter()

    sys.stdout.write(f"{tokenizer.decode(ours[0], skip_special_tokens=True)}\n")
    sys.stdout.write(
        f"the same text: {bool((plain.shape == ours.shape) and (plain == ours).all())}; "
        f"plain {between - begun:.2f} s, {policy.name} {ended - between:.2f} s; "
        f"fallbacks: {dict(policy.warnings) or 'none'}\n"
    )


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    main(*sys.argv[1:])
