# SPDX-License-Identifier: Apache-2.0
"""llama-cpp-python: a `draft_model=` callable whose draft lengths a policy chooses.

    drafter = draft_model("mine.speckv", Llama("draft.gguf", n_ctx=4096, flash_attn=True))
    target = Llama("target.gguf", n_ctx=4096, flash_attn=True, **drafter.target_options())
    drafter.attach(target)

Requirements and guarantees: docs/integrations/llama-cpp.md.
"""

from speckv.integrations.llama_cpp.drafting import PolicyDrafting, Totals, draft_model
from speckv.integrations.llama_cpp.library import exact_width
from speckv.integrations.llama_cpp.proposers import LlamaDraft, LookupDraft, Proposed, Proposer

__all__ = [
    "LlamaDraft",
    "LookupDraft",
    "PolicyDrafting",
    "Proposed",
    "Proposer",
    "Totals",
    "draft_model",
    "exact_width",
]
