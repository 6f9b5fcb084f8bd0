# SPDX-License-Identifier: Apache-2.0
"""vLLM decodes under an exported policy: same text, and its own counts of what was drafted.

    python examples/vllm_scheduler.py mine.speckv TARGET DRAFT

In an environment of vLLM's own, with SpecKV beside it (docs/integrations/vllm.md).
"""

import logging
import os
import sys

# One process for engine and scheduler, so that the policy's warnings can be read here.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")

from vllm import LLM, SamplingParams

from speckv import runtime
from speckv.integrations.vllm import use

PROMPTS = ["def fibonacci(n):", "The capital of France is"]
MOST, BATCH = 8, 4
logger = logging.getLogger(__name__)


def main() -> None:
    """Decodes and prints what was drafted."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    folder, target, draft = sys.argv[1:4]
    speculation = {
        "method": "draft_model",
        "model": draft,
        "num_speculative_tokens": MOST,
        # How many of them are drafted in a step is the policy's to say.
        "num_speculative_tokens_per_batch_size": [[1, BATCH, MOST]],
    }
    # Elsewhere: SPECKV_POLICY=mine.speckv in the environment in place of `use`.
    with use(runtime.load(folder)) as policy:
        llm = LLM(
            model=target,
            speculative_config=speculation,
            scheduler_cls="speckv.integrations.vllm.SpecKVAsyncScheduler",
            max_num_seqs=BATCH,
            max_model_len=512,
            disable_log_stats=False,
        )
    for output in llm.generate(PROMPTS, SamplingParams(temperature=0.0, max_tokens=64)):
        logger.info("%s%s", output.prompt, output.outputs[0].text)
    for metric in llm.get_metrics():
        if metric.name.startswith("vllm:spec_decode_num_") and hasattr(metric, "value"):
            logger.info("%s %d", metric.name, metric.value)
    logger.info("fallbacks: %s", dict(policy.warnings))


if __name__ == "__main__":
    main()
