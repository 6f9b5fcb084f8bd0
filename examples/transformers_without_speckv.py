# SPDX-License-Identifier: Apache-2.0
"""transformers' assisted generation under an exported policy, with no SpecKV installed here.

    speckv export shipped --to hf-custom-generate --out mine    # where SpecKV is
    python transformers_without_speckv.py mine TARGET DRAFT "Write a haiku about rain."    # anywhere

TARGET and DRAFT are hub ids or folders of models with one tokenizer.
"""

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer


def main(folder: str, target_id: str, draft_id: str, text: str) -> None:
    """Decodes a prompt under the policy; the text is the target's own."""
    tokenizer = AutoTokenizer.from_pretrained(target_id)
    target, draft = (AutoModelForCausalLM.from_pretrained(name).eval() for name in (target_id, draft_id))
    inputs = tokenizer(text, return_tensors="pt").to(target.device)
    found = target.generate(
        **inputs, custom_generate=folder, trust_remote_code=True, assistant_model=draft, max_new_tokens=64
    )
    sys.stdout.write(f"{tokenizer.decode(found[0], skip_special_tokens=True)}\n")


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    main(*sys.argv[1:])
